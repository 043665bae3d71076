"""Group and layer norms."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels import _core
from cpu.op_cases.case import LEVELS, ROWS, Case, byte_count, image


def group_norm_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """With SiLU, of every level."""
    for side, width in LEVELS:
        yield _group_norm_case(pool, dtype, side, width)


def layer_norm_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Of every level."""
    for side, width in LEVELS:
        yield _layer_norm_case(pool, dtype, ROWS * side * side, width)


def _group_norm_case(pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int) -> Case:
    x, weight, bias = image(side, width, dtype), torch.randn(width), torch.randn(width)
    tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
    out = torch.empty_like(tokens)
    own_weight, own_bias = weight.to(dtype), bias.to(dtype)

    def ours() -> Tensor:
        _core.group_norm(pool, [tokens], out, weight, bias, groups=32, eps=1e-5, activation="silu")
        return out.view(ROWS, side, side, -1).permute(0, 3, 1, 2)

    def theirs() -> Tensor:
        return F.silu(F.group_norm(x, 32, own_weight, own_bias, 1e-5))

    return Case("group norm", f"{ROWS}x{side}x{side}x{width}", dtype, ours, theirs, bytes=byte_count(x, x))


def _layer_norm_case(pool: "_core.ThreadPool", dtype: torch.dtype, m: int, width: int) -> Case:
    x, weight, bias = torch.randn(m, width).to(dtype), torch.randn(width), torch.randn(width)
    out, own_weight, own_bias = torch.empty_like(x), weight.to(dtype), bias.to(dtype)

    def ours() -> Tensor:
        _core.layer_norm(pool, x, out, weight, bias, eps=1e-5)
        return out

    def theirs() -> Tensor:
        return F.layer_norm(x, (width,), own_weight, own_bias, 1e-5)

    return Case("layer norm", f"{m}x{width}", dtype, ours, theirs, bytes=byte_count(x, x))
