"""A case, and the shapes that the cases share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 2
LEVELS = ((64, 320), (32, 640), (16, 1280), (8, 1280))
"""(side, channels)."""


@dataclass(frozen=True)
class Case:
    """ours, theirs: the same op, [.., ..] out. flop or bytes: what it does, bytes as often as a tensor is read or written."""

    op: str
    shape: str
    dtype: torch.dtype
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    flop: float = 0.0
    bytes: float = 0.0


def name_of(dtype: torch.dtype) -> str:
    """ "float32", "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def image(side: int, width: int, dtype: torch.dtype) -> Tensor:
    """Random [ROWS, width, side, side], channels last."""
    return torch.randn(ROWS, width, side, side).to(dtype).contiguous(memory_format=torch.channels_last)


def image_of(tokens: Tensor, side: int) -> Tensor:
    """[R, C, side, side] of [R * side * side, C]."""
    return tokens.view(-1, side, side, tokens.shape[-1]).permute(0, 3, 1, 2)


def byte_count(*tensors: Tensor) -> float:
    """Of all elements."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
