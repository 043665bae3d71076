"""The definition in plain PyTorch, differentiable:

    out_r(n) = gate_r * sum_s w_s,r(n) * A_s,r(n) @ M_s V_[v_rows_s(r)]
    A_s,r(n) = softmax_L(scale * q_[q_rows_s(r)](n) . K_[k_rows_s(r)] + bias_s), after its mass shift

Outputs come from PyTorch's fused attention; those of shifted maps, and all that is reported, from slices of the map. Reporting
does not change the bits of an output.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels.attention.map_path import shifted
from bridle_kernels.attention.operands import Operands, accumulator, mixing, operands, pick, values
from bridle_kernels.attention.reports import clear_reports, report
from bridle_kernels.attention.row_groups import RowGroup, row_groups
from bridle_kernels.attention.segment import Segment
from bridle_kernels.attention.softmax_map import visible_bias


def attention(
    q: Tensor,
    segments: Sequence[Segment],
    *,
    scale: float | None = None,
    causal: bool = False,
    float32_scores: bool = False,
    gate: float | Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """See `bridle_kernels.attention`; the arguments are not checked."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    total: Tensor | None = None
    for segment in segments:
        clear_reports(segment)
        for group in row_groups(segment, q.shape[0]):
            if segment.mass is not None:
                term = shifted(q, segment, segment.mass, group, scale)
            else:
                term = _plain(q, segment, group, scale, causal, float32_scores)
            weight = segment.weight
            term = weighted(term, pick(weight, group) if isinstance(weight, Tensor) else weight)
            total = _add_rows(total, term, group)
    return deliver(q.new_zeros(q.shape) if total is None else total, q.dtype, gate, out)


def _plain(q: Tensor, segment: Segment, group: RowGroup, scale: float, causal: bool, float32_scores: bool) -> Tensor:
    """The output [r, N, H, d] of a segment without a mass shift, before its weight; reports on the way."""
    read = operands(q, segment, group)
    mix = mixing(segment, group, read.keys)
    if segment.reads_map:
        report(read, mix, segment, group, scale)
    v = values(segment, group, mix)
    if float32_scores:
        read, v = replace(read, q=read.q.float(), k=read.k.float()), v.float()
    return _fused(read, v, scale, causal).transpose(1, 2).to(q.dtype)


def _fused(read: Operands, v: Tensor, scale: float, causal: bool) -> Tensor:
    """The output [r, H, N, d]. v: [r, H, L, d]."""
    if read.bias is None:
        return F.scaled_dot_product_attention(read.q, read.k, v, is_causal=causal, scale=scale)
    bias, blind = visible_bias(read.bias.to(read.q.dtype))
    return F.scaled_dot_product_attention(read.q, read.k, v, attn_mask=bias, scale=scale).masked_fill(blind, 0.0)


def _add_rows(total: Tensor | None, term: Tensor, group: RowGroup) -> Tensor:
    """total [R, N, H, d] plus the group's term [r, N, H, d], summed in at least float32."""
    if total is None and group.is_whole:
        return term
    dtype = accumulator(term.dtype)
    if total is None:
        total = term.new_zeros((group.count, *term.shape[1:]), dtype=dtype)
    if group.is_whole:
        return total.to(dtype) + term
    return total.to(dtype).index_add(0, torch.tensor(group.rows, device=term.device), term.to(dtype))


def weighted(term: Tensor, weight: float | Tensor) -> Tensor:
    """weight * term [r, N, ...] in at least float32; weight: a number, [], [r] or [r, N]. 0 gives 0, even from NaN."""
    if not isinstance(weight, Tensor):
        if weight == 1.0:
            return term
        return term.to(accumulator(term.dtype)) * weight if weight else torch.zeros_like(term)
    dtype = accumulator(term.dtype)
    factor = weight.to(dtype).view(*weight.shape, *[1] * (term.ndim - weight.ndim))
    return torch.where(factor == 0.0, 0.0, term.to(dtype) * factor)


def deliver(total: Tensor, dtype: torch.dtype, gate: float | Tensor | None, out: Tensor | None) -> Tensor:
    """gate * total as [R, N, H*d] of `dtype`, or added to out."""
    total = total.flatten(2) if gate is None else weighted(total, gate).flatten(2)
    return total.to(dtype) if out is None else out.add_(total.to(accumulator(total.dtype)))
