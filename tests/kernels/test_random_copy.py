"""Copies of the C++ core on random cases: any strides on both sides, broadcast and backward inputs, any bits."""

import pytest
import torch
from random_cases import Case, run
from torch import Tensor

from bridle_kernels import _core
from numerics import bits

MOST = 40_000


def shape_of(case: Case) -> list[int]:
    """Five sides at most; sometimes one of them is 0."""
    while True:
        shape = case.sides(case.pick(range(6)), 10**9)
        if torch.Size(shape).numel() <= MOST:
            if shape and case.chance(0.05):
                shape[case.pick(range(len(shape)))] = 0
            return shape


def random_bits(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.finfo(dtype).bits
    whole = torch.randint(-(2 ** (size - 1)), 2 ** (size - 1), shape, generator=generator)
    return whole.to(torch.int32 if size == 32 else torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_copy(dtype: torch.dtype) -> None:
    def check(case: Case) -> None:
        shape = shape_of(case)
        repeated = [case.chance(0.15) for _ in shape]
        values = random_bits(
            [min(n, 1) if r else n for n, r in zip(shape, repeated, strict=True)], dtype, case.pick(range(2**31))
        )
        x: object = case.given(values, dtype, case.pick(("rows", "any", "any"))).expand(shape)
        wanted, out = (
            values.expand(shape),
            case.output(*shape, dtype=dtype, layout=case.pick(("compact", "rows", "any"))),
        )
        if dtype != torch.bfloat16 and shape and case.chance(0.3):
            backward = tuple(slice(None, None, case.pick((1, -1))) for _ in shape)
            x = x.numpy()[backward]  # type: ignore[attr-defined]
            x.flags.writeable = True if x.size and not any(repeated) else x.flags.writeable  # type: ignore[attr-defined]
            wanted = torch.from_numpy(wanted.contiguous().numpy()[backward].copy())
        _core.copy(_core.ThreadPool(case.pick((1, 2, 3))), x, out)
        assert torch.equal(bits(out), bits(wanted.contiguous()))

    run(check, 60)
