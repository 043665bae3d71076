"""residual_add of the C++ core on random cases: rows, broadcast and gapped values, masks, values of every kind."""

import pytest
import torch
from random_cases import Case, assert_accepted, assert_same, run
from torch import Tensor

from bridle_kernels import _core

MOST = 8_000
Term = tuple[Tensor, Tensor, list[int], Tensor | None]


def term_of(case: Case, shape: list[int], dtype: torch.dtype) -> Term:
    """Values [r or 1, positions or 1, C], scale [r], rows, and a mask [r, positions] or None."""
    rows = [row for row in range(shape[0]) if case.chance(0.7)] or [0]
    rows = rows[::-1] if case.chance(0.3) else rows
    sides = (1 if case.chance(0.3) else len(rows), 1 if case.chance(0.3) else shape[1], shape[2])
    scale = case.normal(len(rows)).clamp(-2, 2)
    mask = case.normal(len(rows), shape[1]).clamp(-1, 1) if case.chance() else None
    if case.kind == "huge":
        scale = scale / 8
    return case.values(*sides, dtype=dtype), scale, rows, mask


def added(x: Tensor, terms: list[Term], dtype: torch.dtype, absolute: bool = False) -> Tensor:
    """The definition, with factors in float32 as they are given."""
    out = x.to(dtype).abs() if absolute else x.to(dtype).clone()
    for values, scale, rows, mask in terms:
        factor = scale[:, None, None].to(dtype)
        factor = factor if mask is None else factor * mask[:, :, None].to(dtype)
        product = (values.to(dtype) * factor).expand(-1, *x.shape[1:])
        out[rows] += product.abs() if absolute else product
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_residual_add(dtype: torch.dtype) -> None:
    def check(case: Case) -> None:
        positions, channels = case.sides(2, MOST // 3)
        shape = [
            0 if case.chance(0.02) else case.pick((1, 2, 3)),
            positions,
            case.pick((channels, channels, 513, 1030)),
        ]
        x = case.values(*shape, dtype=dtype)
        terms = [term_of(case, shape, dtype) for _ in range(case.pick((0, 1, 2, 3)))] if shape[0] else []

        def given(places: bool) -> list[dict[str, object]]:
            def put(values: Tensor | None, t: torch.dtype) -> Tensor | None:
                if values is None:
                    return None
                return case.given(values, t, "rows") if places else values.to(t)

            return [
                {"values": put(v, dtype), "scale": s.tolist(), "rows": rows, "mask": put(mask, torch.float32)}
                for v, s, rows, mask in terms
            ]

        out = case.added_to(x, dtype)
        _core.residual_add(_core.ThreadPool(2), out, given(True))
        again = x.to(dtype, copy=True)
        _core.residual_add(_core.ThreadPool(1), again, given(False))
        assert_same(out, again)
        exact, size = added(x, terms, torch.float64), added(x, terms, torch.float64, absolute=True)
        assert_accepted(case, out, exact, size, 12, lambda: added(x, terms, dtype))

    run(check, 30)
