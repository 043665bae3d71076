"""The softmax map of one segment, a few queries at a time: the whole map is never in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle_kernels.attention.operands import Operands, accumulator

MAP_ELEMENTS = 2**18
"""Elements of a map slice of one row."""


@dataclass(frozen=True, slots=True)
class MapSlice:
    """probabilities [r, H, n, L] of n consecutive queries, 0 where no key is visible. scores: their logarithms but for a
    constant per query; blind: [r or 1, H or 1, n or 1, 1], queries without any visible key, None for none."""

    probabilities: Tensor
    scores: Tensor
    blind: Tensor | None

    def log_sum_exp(self) -> Tensor:
        """[r, H, n], -inf where no key is visible."""
        total = self.scores.logsumexp(-1)
        return total if self.blind is None else total.masked_fill(self.blind[..., 0], -torch.inf)


def map_slices(operands: Operands, scale: float) -> Iterator[MapSlice]:
    """softmax(scale * Q K^T + bias) in at least float32, in the order of the queries."""
    dtype = accumulator(operands.q.dtype)
    keys = operands.k.to(dtype).transpose(-1, -2).contiguous()
    _, heads, queries, _ = operands.q.shape
    bias, blind = (None, None) if operands.bias is None else visible_bias(operands.bias.to(dtype))
    count = max(1, MAP_ELEMENTS // (heads * keys.shape[-1]))
    for start in range(0, queries, count):
        scores = (operands.q[:, :, start : start + count].to(dtype) * scale) @ keys
        hidden = None if blind is None else _slice(blind, start, count)
        if bias is not None:
            scores = scores + _slice(bias, start, count)
        probabilities = scores.softmax(-1)
        if hidden is not None:
            probabilities = probabilities.masked_fill(hidden, 0.0)
        yield MapSlice(probabilities, scores, hidden)


def visible_bias(bias: Tensor) -> tuple[Tensor, Tensor]:
    """The bias with 0 for queries that see no key, whose softmax would be 0/0, and the mask [.., .., .., 1] of them."""
    blind = (bias == -torch.inf).all(-1, keepdim=True)
    return bias.masked_fill(blind, 0.0), blind


def _slice(tensor: Tensor, start: int, count: int) -> Tensor:
    """Those queries of a tensor [.., .., N or 1, ..]."""
    return tensor if tensor.shape[2] == 1 else tensor[:, :, start : start + count]
