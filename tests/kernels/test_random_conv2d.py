"""Convolutions of the C++ core on random cases: sides, sources, kernels, strides, padding, sizes after upsampling."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from random_cases import KINDS, NOT_FINITE, Case, assert_accepted, assert_same, run
from test_native_gemm import each_variant
from test_random_gemm import ACTIVATIONS, NARROW, activated, packed, weights_of
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.phases import PHASES

MOST = 12_000
"""Products of a case for one output pixel and one tap, times the input pixels."""


def images(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], int]:
    """One or two sources [R, h, w, C], and the number of outputs."""
    step = 2 if dtype == torch.bfloat16 else 1
    while True:
        channels, other, outputs = case.sides(3, 100_000, (step, step))
        height, width, rows = case.pick((1, 2, 3, 5, 8, 9)), case.pick((1, 2, 3, 4, 7, 17)), case.pick((1, 1, 2, 3))
        widths = [channels, other] if case.chance(0.4) else [channels]
        if sum(widths) * outputs * height * width * rows <= MOST * 8:
            rows = 0 if case.chance(0.02) else rows
            return [case.values(rows, height, width, c, dtype=dtype) for c in widths], outputs


def enlarged(x: Tensor, size: Sequence[int] | None) -> Tensor:
    """x [R, C, h, w] by its nearest pixels."""
    if size is None:
        return x
    lines, columns = (torch.arange(n) * side // n for n, side in zip(size, x.shape[2:], strict=True))
    return x[:, :, lines][:, :, :, columns]


def accept(
    case: Case, dtype: torch.dtype, sources: list[Tensor], weight: Tensor, product: Callable[[Tensor, Tensor], Tensor],
    call: Callable[[int, list[Tensor], Tensor, dict[str, object]], None],
) -> None:  # fmt: skip
    """product: of x [R, C, h, w] and weights. call: of threads, sources, out and what is added to sums."""
    x, outputs = torch.cat(sources, 3).permute(0, 3, 1, 2), weight.shape[0]
    exact = product(x.double(), weight.double())
    rows, _, height, width = exact.shape
    bias = case.normal(outputs) if case.chance() else torch.zeros(outputs)
    shift = case.normal(rows, outputs) if case.chance() else torch.zeros(rows, outputs)
    residual = case.normal(rows, height, width, outputs).to(dtype).float() if case.chance() else None
    kind = case.pick(("", "relu") if case.exact or case.kind in NOT_FINITE else ACTIVATIONS)
    flat = None if residual is None else case.given(residual.view(-1, outputs), dtype)
    epilogue = {
        "bias": case.given(bias),
        "shift": case.given(shift, layout="rows"),
        "residual": flat,
        "activation": kind,
    }
    out = case.output(rows * height * width, outputs, dtype=dtype)
    call(2, [case.given(source, dtype) for source in sources], out, epilogue)
    added = (bias + shift)[:, :, None, None]
    last = torch.zeros(1) if residual is None else residual.permute(0, 3, 1, 2)

    def whole(t: torch.dtype) -> Tensor:
        return activated((product(x.to(t), weight.to(t)) + added.to(t)) + last.to(t), kind)

    ours = out.view(rows, height, width, outputs).permute(0, 3, 1, 2)
    magnitude = (
        product(x.double().abs(), weight.double().abs()) + bias.abs()[:, None, None] + shift.abs()[:, :, None, None]
    )
    depth = weight[0].numel() + 16
    peer = (lambda: whole(dtype)) if outputs >= NARROW else None
    assert_accepted(case, ours, whole(torch.float64), magnitude + last.abs(), depth, peer)
    again = torch.empty_like(out)
    call(1, [source.to(dtype) for source in sources], again, epilogue)
    assert_same(out, again)


@each_variant
def test_conv2d(isa: str, dtype: torch.dtype) -> None:
    def check(case: Case) -> None:
        sources, outputs = images(case, dtype)
        kernel = [case.pick((1, 1, 2, 3, 3, 3)) for _ in range(2)]
        channels, (height, width) = [source.shape[3] for source in sources], sources[0].shape[1:3]
        size = None if case.chance(0.7) else (height + case.pick((0, 1, height, 4)), width + case.pick((0, 2, width)))
        stride = case.pick((1, 1, 2, 3))
        h, w = size or (height, width)
        left, top = case.pick((0, 1, 1, 2)), case.pick((0, 1, 1, 2))
        right, bottom = (
            case.pick((0, 1, 1)) + max(0, k - n - p - 1) for k, n, p in zip(kernel, (h, w), (left, top), strict=True)
        )
        right, bottom = max(right, kernel[1] - w - left), max(bottom, kernel[0] - h - top)
        weight = weights_of(case, outputs, sum(channels) * kernel[0] * kernel[1], dtype)
        weight = weight.view(outputs, sum(channels), *kernel)
        taps = weight.permute(0, 2, 3, 1).reshape(outputs, -1)
        matrix = packed(case, taps, channels * (kernel[0] * kernel[1]), dtype, isa)

        def product(x: Tensor, by: Tensor) -> Tensor:
            return F.conv2d(F.pad(enlarged(x, size), (left, right, top, bottom)), by, stride=stride)

        def call(threads: int, given: list[Tensor], out: Tensor, epilogue: dict[str, object]) -> None:
            named = {"kernel": kernel, "stride": stride, "padding": [left, right, top, bottom], "upsample": size or ()}
            _core.conv2d(_core.ThreadPool(threads), matrix, given, out, **named, **epilogue)

        accept(case, dtype, sources, weight, product, call)

    run(check, 12)


@each_variant
def test_upsampled_conv2d(isa: str, dtype: torch.dtype) -> None:
    """In bfloat16 sums of integers only: sums of other taps are rounded. No infinity, whose taps are summed first."""

    def check(case: Case) -> None:
        case.kind = "integers" if dtype == torch.bfloat16 else case.kind
        sources, outputs = images(case, dtype)
        channels = [source.shape[3] for source in sources]
        weight = weights_of(case, outputs, sum(channels) * 9, dtype).view(outputs, -1, 3, 3)
        four = [phase.weights(weight).permute(0, 2, 3, 1).reshape(outputs, -1) for phase in PHASES]
        matrices = [packed(case, taps, channels * 4, dtype, isa) for taps in four]
        size = [2 * side for side in sources[0].shape[1:3]]

        def product(x: Tensor, by: Tensor) -> Tensor:
            return F.conv2d(enlarged(x, size), by, padding=1)

        def call(threads: int, given: list[Tensor], out: Tensor, epilogue: dict[str, object]) -> None:
            _core.upsampled_conv2d(_core.ThreadPool(threads), matrices, given, out, **epilogue)

        accept(case, dtype, sources, weight, product, call)

    run(check, 5, [kind for kind in KINDS if kind != "inf"])
