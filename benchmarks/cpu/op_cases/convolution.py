"""Convolutions as the networks have them: with a bias, and most with what is fused to them."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.phases import PHASES
from cpu.op_cases.case import LEVELS, ROWS, Case, image, image_of, name_of


def convolution_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Of every level: 3x3; of two inputs as after a skip connection, with a time shift; the second of a residual block,
    with its residual; one that halves the sides; 1x1. And enlargements by two."""
    for side, width in LEVELS:
        yield _plain_case(pool, dtype, side, width, kernel=3, stride=1)
    for side, width in LEVELS:
        yield _two_inputs_case(pool, dtype, side, width)
        yield _residual_case(pool, dtype, side, width)
        yield _plain_case(pool, dtype, side, width, kernel=1, stride=1)
    for side, width in LEVELS[:3]:
        yield _plain_case(pool, dtype, side, width, kernel=3, stride=2)
    for side, width in ((32, 640), (16, 1280), (8, 1280)):
        yield _enlarged_case(pool, dtype, side, width)


def _plain_case(
    pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int, *, kernel: int, stride: int
) -> Case:
    x, weight, bias = image(side, width, dtype), _weight(width, width, kernel), torch.randn(width)
    own = _theirs(weight, bias, dtype)
    packed, out = _packed(weight, [width], dtype), _out(side // stride, width, dtype)
    padding = kernel // 2

    def ours() -> Tensor:
        _core.conv2d(
            pool, packed, [_last(x)], out, kernel=[kernel] * 2, stride=stride, padding=[padding] * 4, bias=bias
        )
        return image_of(out, side // stride)

    def theirs() -> Tensor:
        return F.conv2d(x, *own, stride=stride, padding=padding)

    op = f"conv2d {kernel}x{kernel}" + (", stride 2" if stride == 2 else "")
    return Case(op, _shape(side, width), dtype, ours, theirs, flop=_flop(side // stride, width, width, kernel**2))


def _two_inputs_case(pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int) -> Case:
    x, skip, shift = image(side, width, dtype), image(side, width, dtype), torch.randn(ROWS, width)
    weight, bias = _weight(width, 2 * width, 3), torch.randn(width)
    own, own_shift = _theirs(weight, bias, dtype), shift.to(dtype)[:, :, None, None]
    packed, out = _packed(weight, [width, width], dtype), _out(side, width, dtype)

    def ours() -> Tensor:
        _core.conv2d(pool, packed, [_last(x), _last(skip)], out, kernel=[3, 3], bias=bias, shift=shift)
        return image_of(out, side)

    def theirs() -> Tensor:
        return F.conv2d(torch.cat((x, skip), 1), *own, padding=1) + own_shift

    flop = _flop(side, 2 * width, width, 9)
    return Case("conv2d 3x3, two inputs", _shape(side, 2 * width), dtype, ours, theirs, flop=flop)


def _residual_case(pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int) -> Case:
    x, residual = image(side, width, dtype), image(side, width, dtype)
    weight, bias = _weight(width, width, 3), torch.randn(width)
    own = _theirs(weight, bias, dtype)
    packed, out = _packed(weight, [width], dtype), _out(side, width, dtype)
    added = _last(residual).reshape(-1, width)

    def ours() -> Tensor:
        _core.conv2d(pool, packed, [_last(x)], out, kernel=[3, 3], bias=bias, residual=added)
        return image_of(out, side)

    def theirs() -> Tensor:
        return F.conv2d(x, *own, padding=1) + residual

    flop = _flop(side, width, width, 9)
    return Case("conv2d 3x3, residual", _shape(side, width), dtype, ours, theirs, flop=flop)


def _enlarged_case(pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int) -> Case:
    """Nine taps are counted, of which four are computed: a share of the ceiling may be above one."""
    x, weight, bias = image(side, width, dtype), _weight(width, width, 3), torch.randn(width)
    own = _theirs(weight, bias, dtype)
    phases = [_packed(phase.weights(weight), [width], dtype) for phase in PHASES]
    out = _out(2 * side, width, dtype)

    def ours() -> Tensor:
        _core.upsampled_conv2d(pool, phases, [_last(x)], out, bias=bias)
        return image_of(out, 2 * side)

    def theirs() -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), *own, padding=1)

    flop = _flop(2 * side, width, width, 9)
    return Case("conv2d 3x3, enlarged", _shape(side, width), dtype, ours, theirs, flop=flop)


def _weight(outputs: int, inputs: int, kernel: int) -> Tensor:
    return torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5


def _theirs(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)


def _packed(weight: Tensor, widths: list[int], dtype: torch.dtype) -> "_core.PackedWeights":
    taps = weight.flatten(2).transpose(1, 2)
    return _core.PackedWeights(taps, widths * taps.shape[1], name_of(dtype))


def _out(side: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(ROWS * side * side, width, dtype=dtype)


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _shape(side: int, width: int) -> str:
    return f"{ROWS}x{side}x{side}x{width}"


def _flop(side: int, inputs: int, outputs: int, taps: int) -> float:
    return 2.0 * ROWS * side * side * taps * inputs * outputs
