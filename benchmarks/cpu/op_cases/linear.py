"""Linear layers."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels import _core
from cpu.op_cases.case import LEVELS, ROWS, Case, name_of


def linear_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Projections and both layers of the feed-forward network of every level, without their gates."""
    for side, width in LEVELS[:3]:
        for inputs, outputs in ((width, width), (width, 8 * width), (4 * width, width)):
            yield _linear_case(pool, dtype, ROWS * side * side, inputs, outputs)


def geglu_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """The gated layer of the feed-forward network of every level."""
    for side, width in LEVELS:
        yield _geglu_case(pool, dtype, ROWS * side * side, width)


def _linear_case(pool: "_core.ThreadPool", dtype: torch.dtype, m: int, inputs: int, outputs: int) -> Case:
    x, weight = _operands(dtype, m, inputs, outputs)
    packed = _core.PackedWeights(weight, [inputs], name_of(dtype))
    out = torch.empty(m, outputs, dtype=dtype)

    def ours() -> Tensor:
        _core.linear(pool, packed, x, out)
        return out

    flop = 2.0 * m * inputs * outputs
    return Case("linear", f"{m}x{inputs} -> {outputs}", dtype, ours, lambda: F.linear(x, weight), flop=flop)


def _geglu_case(pool: "_core.ThreadPool", dtype: torch.dtype, m: int, width: int) -> Case:
    outputs = 4 * width
    x, weight = _operands(dtype, m, width, 2 * outputs)
    bias = torch.randn(2 * outputs)
    own_bias = bias.to(dtype)
    packed = _core.PackedWeights(weight, [width], name_of(dtype), gated=True)
    out = torch.empty(m, outputs, dtype=dtype)

    def ours() -> Tensor:
        _core.linear(pool, packed, x, out, bias=bias)
        return out

    def theirs() -> Tensor:
        values, gates = F.linear(x, weight, own_bias).chunk(2, -1)
        return values * F.gelu(gates)

    flop = 2.0 * m * width * 2 * outputs
    return Case("GEGLU", f"{m}x{width} -> {outputs}", dtype, ours, theirs, flop=flop)


def _operands(dtype: torch.dtype, m: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(m, inputs).to(dtype), (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
