"""group_norm and layer_norm of the C++ core on random cases: sides, groups, sources, places in memory, values."""

import torch
import torch.nn.functional as F
from random_cases import Case, assert_accepted, assert_same, run
from test_native_norm import definition, each_dtype, each_isa
from torch import Tensor

from bridle_kernels import _core

KINDS = ("normal", "uniform", "subnormal", "powers", "one hot", "equal", "nan", "inf")
"""Squares of the largest numbers are not finite."""
EXACT_EPS = 12.0
"""Deviations of integer cases are -2 and 2: with this, 1 / sqrt(variance + eps) is 1/4."""

FEW = 16
"""Deviations of fewer elements are almost 0 now and then: the largest error is then a matter of luck."""


def signs(case: Case, *shape: int) -> Tensor:
    return 1.0 - 2.0 * torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(case.pick(range(2**31))))


def rounded(case: Case, exact: Tensor) -> Tensor:
    """Results of integer cases are multiples of 1/4, which PyTorch's float64 misses by a little."""
    return (4 * exact).round() / 4 if case.exact else exact


def magnitude(x: Tensor, whole: tuple[int, ...], eps: float, weight: Tensor, bias: Tensor) -> Tensor:
    """x: [.., elements that are normed together]. whole: its shape for weight and bias."""
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    size = (x.abs() + x.abs().mean(-1, keepdim=True) + (x - mean).abs()) / (variance + eps).sqrt()
    return size.view(whole) * weight.abs() + bias.abs()


@each_dtype
@each_isa
def test_group_norm(isa: str, dtype: torch.dtype) -> None:
    def check(case: Case) -> None:
        while True:
            one, other, positions = case.sides(3, 30_000)
            widths = [one, other] if case.chance(0.4) else [one]
            if sum(widths) * positions <= 8000 and not (case.exact and positions % 2):
                break
        channels, rows, eps = sum(widths), case.pick((1, 1, 2, 3)), EXACT_EPS if case.exact else case.pick((1e-5, 1e-6))
        rows = 2 if channels * positions == 1 else rows
        groups = case.pick(
            [n for n in range(1, channels + 1) if channels % n == 0 and rows * channels // n * positions > 1]
        )
        x = case.values(rows, positions, channels, dtype=dtype)
        if case.exact:
            pairs = 2 * signs(case, rows, positions // 2, channels)
            x = torch.stack([pairs, -pairs], 2).view(rows, positions, channels)
        elif case.kind == "normal" and case.chance():
            x = (x + case.pick((3.0, -64.0))).to(dtype).float()
        weight, bias, scale, shift = (
            case.normal(channels),
            case.normal(channels),
            case.normal(rows, channels),
            case.normal(rows, channels),
        )
        affine = case.chance()
        kind = "" if case.exact or case.kind in ("nan", "inf") else case.pick(("", "silu"))
        out = case.output(rows, positions, channels, dtype=dtype)
        named = {"groups": groups, "eps": eps, "activation": kind, "isa": isa}
        named |= {"scale": case.given(scale), "shift": case.given(shift)} if affine else {}
        w, b = case.given(weight), case.given(bias)
        _core.group_norm(_core.ThreadPool(2), [case.given(s, dtype) for s in x.split(widths, 2)], out, w, b, **named)
        if not affine:
            scale, shift = torch.zeros(1, channels), torch.zeros(1, channels)

        def whole(t: torch.dtype) -> Tensor:
            normed = definition(x.to(t), weight.to(t), bias.to(t), groups, eps)
            normed = normed * (1 + scale[:, None].to(t)) + shift[:, None].to(t)
            return F.silu(normed) if kind else normed

        peer = (lambda: whole(dtype)) if channels // groups * positions >= FEW else None
        together = x.double().transpose(1, 2).reshape(rows, groups, -1)
        by_channel = [
            t.double()[:, :, None] for t in (weight * (1 + scale.double()), bias * (1 + scale.double()).abs() + 0)
        ]
        size = magnitude(
            together, (rows, channels, positions), eps, by_channel[0], by_channel[1].abs() + shift[:, :, None].abs()
        )
        assert_accepted(case, out, rounded(case, whole(torch.float64)), size.transpose(1, 2), 100, peer)
        again = torch.empty(rows, positions, channels, dtype=dtype)
        _core.group_norm(
            _core.ThreadPool(1), [s.to(dtype).contiguous() for s in x.split(widths, 2)], again, weight, bias, **named
        )
        assert_same(out, again)

    run(check, 20, KINDS)


@each_dtype
@each_isa
def test_layer_norm(isa: str, dtype: torch.dtype) -> None:
    def check(case: Case) -> None:
        channels, m = case.sides(2, 8000, (2 if case.exact else 1,))
        eps = EXACT_EPS if case.exact else case.pick((1e-5, 1e-6))
        x = case.values(m, channels, dtype=dtype)
        if case.exact:
            halves = 2 * signs(case, m, channels // 2)
            order = torch.randperm(channels, generator=torch.Generator().manual_seed(channels))
            x = torch.cat([halves, -halves], 1)[:, order]
        weight, bias, out = case.normal(channels), case.normal(channels), case.output(m, channels, dtype=dtype)
        named = {"eps": eps, "isa": isa}
        _core.layer_norm(_core.ThreadPool(2), case.given(x, dtype), out, case.given(weight), case.given(bias), **named)

        def whole(t: torch.dtype) -> Tensor:
            return F.layer_norm(x.to(t), (channels,), weight.to(t), bias.to(t), eps)

        peer = (lambda: whole(dtype)) if channels >= FEW else None
        size = magnitude(x.double(), (m, channels), eps, weight.double(), bias.double())
        assert_accepted(case, out, rounded(case, whole(torch.float64)), size, 100, peer)
        again = torch.empty(m, channels, dtype=dtype)
        _core.layer_norm(_core.ThreadPool(1), x.to(dtype), again, weight, bias, **named)
        assert_same(out, again)

    run(check, 20, KINDS)
