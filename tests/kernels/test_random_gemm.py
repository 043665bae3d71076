"""linear of the C++ core on random cases: sides, places in memory, values, activations, and values times their gates."""

import pytest
import torch
import torch.nn.functional as F
from random_cases import KINDS, NOT_FINITE, Case, assert_accepted, assert_same, run
from test_native_gemm import each_variant
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.activation import activation

ACTIVATIONS = ("", "", "silu", "relu", "gelu", "quick_gelu", "tanh")
MOST = 200_000
"""Products of a case."""
NARROW = 15
"""PyTorch's products with fewer rows or columns sum K in lanes, which is more accurate than one after another."""


def activated(x: Tensor, kind: str) -> Tensor:
    return activation(x, kind) if kind else x


def weights_of(case: Case, n: int, k: int, dtype: torch.dtype) -> Tensor:
    """float32 [n, k] that `dtype` holds; sums with the largest values stay finite."""
    weight = case.normal(n, k)
    if case.kind == "huge":
        weight = weight.clamp(-1, 1) / k
    return weight.to(dtype).float() if case.exact or case.kind == "huge" else (weight / k**0.5).to(dtype).float()


def packed(
    case: Case, weight: Tensor, widths: list[int], dtype: torch.dtype, isa: str, **named: bool
) -> "_core.PackedWeights":
    """Of weights in any order, in either dtype."""
    stored = case.given(weight, case.pick((torch.float32, dtype)), "any")
    return _core.PackedWeights(stored, widths, str(dtype).removeprefix("torch."), isa, **named)


@pytest.mark.parametrize("gated", [False, True])
@each_variant
def test_linear(isa: str, dtype: torch.dtype, gated: bool) -> None:
    """Gates of integers are 10 at least, where gelu is the identity."""

    def check(case: Case) -> None:
        k, n, m = case.sides(3, MOST, (2 if dtype == torch.bfloat16 else 1,))
        m = 0 if case.chance(0.02) else m
        x, weight = case.values(m, k, dtype=dtype), weights_of(case, n * (2 if gated else 1), k, dtype)
        bias = case.normal(weight.shape[0]) if case.chance() else None
        if gated and case.exact:
            weight[n:, 3:], bias = 0, case.normal(2 * n)
            bias[n:] += 24
        residual = case.normal(m, n).to(dtype).float() if case.chance() and not gated else None
        kind = "" if gated else case.pick(("", "relu") if case.exact or case.kind in NOT_FINITE else ACTIVATIONS)
        matrix, out = packed(case, weight, [k], dtype, isa, gated=gated), case.output(m, n, dtype=dtype)
        given = {"bias": bias if bias is None else case.given(bias), "activation": kind}
        given["residual"] = residual if residual is None else case.given(residual, dtype)
        _core.linear(_core.ThreadPool(2), matrix, case.given(x, dtype), out, **given)

        def whole(t: torch.dtype) -> Tensor:
            product = F.linear(x.to(t), weight.to(t), None if bias is None else bias.to(t))
            if gated:
                value, gate = product.chunk(2, -1)
                return value * F.gelu(gate)
            return activated(product if residual is None else product + residual.to(t), kind)

        size = F.linear(x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs())
        if residual is not None:
            size = size + residual.abs()
        magnitude = size[:, :n] * size[:, n:] if gated else size
        peer = (lambda: whole(dtype)) if min(m, n) >= NARROW else None
        assert_accepted(case, out, whole(torch.float64), magnitude, 330 + k, peer)
        again = torch.empty(m, n, dtype=dtype)
        _core.linear(_core.ThreadPool(1), matrix, x.to(dtype), again, **given)
        assert_same(out, again)

    run(check, 12, [kind for kind in KINDS if not (gated and kind in ("huge", "inf"))])
