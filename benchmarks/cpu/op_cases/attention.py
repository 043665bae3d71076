"""Attention of the U-Net and of the autoencoder."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.attention import Piece, Segment, native
from cpu.op_cases.case import LEVELS, ROWS, Case

VAE_POSITIONS, VAE_CHANNELS = 4096, 512
"""Of the one head of the autoencoder's middle block, for an image of 512x512."""


def attention_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Self- and cross-attention of every level, and that of a decoder."""
    for side, channels in LEVELS:
        for name, keys in (("self", side * side), ("cross", 77)):
            yield _case(pool, dtype, f"{name}-attention", (ROWS, side * side, 8, channels // 8), keys)
    yield _case(pool, dtype, "VAE attention", (1, VAE_POSITIONS, 1, VAE_CHANNELS), VAE_POSITIONS)


def _case(pool: "_core.ThreadPool", dtype: torch.dtype, op: str, shape: tuple[int, int, int, int], keys: int) -> Case:
    rows, queries, heads, dim = shape
    q, k, v = (torch.randn(rows, n, heads, dim).to(dtype) for n in (queries, keys, keys))
    segment = Segment((Piece(k, v),))

    def theirs() -> Tensor:
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2).flatten(2)

    return Case(
        op,
        f"{rows}x{queries}x{heads}x{dim}, {keys} keys",
        dtype,
        lambda: native.attention(q, [segment], pool=pool),
        theirs,
        flop=4.0 * rows * heads * queries * keys * dim,
    )
