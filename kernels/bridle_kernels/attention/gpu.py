"""The Triton kernels on GPU tensors; in Triton's interpreter on CPU tensors too."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle_kernels.attention import gradient
from bridle_kernels.attention.gpu_operands import (
    GpuSegment,
    GpuShift,
    capture_columns,
    column_mix,
    dense,
    gpu_segment,
    numbers,
)
from bridle_kernels.attention.gpu_problem import Problem
from bridle_kernels.attention.launch import WIDEST
from bridle_kernels.attention.reference import deliver
from bridle_kernels.attention.segment import Capture, Segment
from bridle_kernels.attention.shapes import key_count

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels compute in."""


def refusal(q: Tensor, segments: Sequence[Segment], out: Tensor | None = None) -> str | None:
    """None, or why the kernels do not serve these tensors."""
    pieces = [piece for segment in segments for piece in segment.pieces]
    if q.dtype not in DTYPES or any(p.k.dtype != q.dtype or p.v.dtype != q.dtype for p in pieces):
        return "q, k and v want one dtype, float32, float16 or bfloat16"
    if q.shape[3] > WIDEST:
        return f"the head dimension is more than {WIDEST}"
    if out is not None and not out.is_contiguous():
        return "out wants one element after another"
    buffers = [c.out for s in segments for c in s.captures]
    buffers += [s.lse for s in segments if s.lse is not None]
    buffers += [s.mass.out for s in segments if s.mass is not None and s.mass.out is not None]
    if any(buffer.dtype != torch.float32 for buffer in buffers):
        return "what is reported wants float32"
    has_none = any(s.mass is not None or _learns(s.bias) for s in segments)
    if has_none and _is_differentiated(q, segments, None, out):
        return "a bias, and all of a segment with a shift of masses, have no gradient"
    return None


def _learns(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _is_differentiated(q: Tensor, segments: Sequence[Segment], gate: object, out: Tensor | None) -> bool:
    """Whether autograd is to know what is computed."""
    operands: list[object] = [q, gate, out]
    for s in segments:
        operands += [s.weight, s.bias, s.v_mix, *(c.out for c in s.captures)]
        operands += [part for piece in s.pieces for part in (piece.k, piece.v)]
    return torch.is_grad_enabled() and any(_learns(operand) for operand in operands)


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
    """See `bridle_kernels.attention`; the arguments are not checked. Nothing waits for the GPU."""
    rows, queries, heads, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    used = [s for s in segments if s.reads_map or isinstance(s.weight, Tensor) or s.weight != 0.0]
    if _is_differentiated(q, used, gate, out):
        return gradient.attention(
            q, used, scale=scale, causal=causal, float32_scores=float32_scores, gate=gate, out=out
        )
    q = dense(q)
    fused = bool(used) and all(segment.mass is None for segment in used)
    total = None if fused and len(used) == 1 else q.new_zeros(q.shape, dtype=torch.float32)
    result = q.new_empty(rows, queries, heads * dim) if out is None else out
    opening = None if gate is None else numbers(gate, rows, q.device)
    for index, segment in enumerate(used):
        read = gpu_segment(q, segment, float32_scores)
        problem = Problem(q, read, scale)
        last = fused and index == len(used) - 1
        lse = problem.forward(total, result, opening, causal, segment.reads_map, (index == 0, last, out is not None))
        if lse is not None:
            _report(problem, segment, read, lse, total)
    if fused:
        return result
    summed = q.new_zeros(q.shape) if total is None else total
    return deliver(summed, q.dtype, gate, out)


def _report(problem: Problem, segment: Segment, read: GpuSegment, lse: Tensor, total: Tensor | None) -> None:
    """Fills the buffers of a segment and moves the masses of a shift."""
    if segment.lse is not None:
        segment.lse.copy_(lse)
    moved = None
    if read.shift is not None:
        masses = problem.masses(lse, read.shift)
        if segment.mass is not None and segment.mass.out is not None:
            segment.mass.out.copy_(masses)
        moved = read.shift.share[:, None] * masses
        if total is not None and read.named is not None:
            update = torch.einsum("rsn,rhs,rshd->rnhd", read.shift.window, moved, read.named)
            weight = None if read.weight is None else read.weight[:, :, None, None]
            total += update if weight is None else torch.where(weight == 0.0, 0.0, update * weight)
    for capture in segment.captures:
        _capture(problem, segment, capture, lse, moved)


def _capture(problem: Problem, segment: Segment, capture: Capture, lse: Tensor, moved: Tensor | None) -> None:
    rows, queries, heads, _ = problem.q.shape
    device = problem.q.device
    taken = torch.arange(rows, device=device) if capture.rows is None else capture.rows.long()
    factors = numbers(capture.scale, len(taken), device)
    per_head = capture.out.ndim == 4
    out = capture.out if per_head else capture.out[:, None].expand(-1, heads, -1, -1)
    columns = capture_columns(segment, capture, device)
    mix = None
    if segment.v_mix is not None:
        mix = column_mix(segment.v_mix, problem.read.seen, taken, columns)
        keys = torch.arange(key_count(segment), dtype=torch.int32, device=device)[None]
        every = torch.zeros(len(taken), heads if per_head else 1, queries, keys.shape[1], device=device)
        ones = torch.ones_like(factors)
        problem.capture(lse, taken.int(), keys, ones, every if per_head else every.expand(-1, heads, -1, -1))
        found = every @ mix[:, None] * factors[:, None, None, None]
        capture.out.add_(found if per_head else found[:, 0])
    else:
        problem.capture(lse, taken.int(), columns, factors, out)
    shift = problem.read.shift
    if shift is not None and moved is not None:
        given = moved if per_head else moved.mean(1, keepdim=True)
        chosen = _shifted_columns(shift, taken, columns, mix)
        window = shift.window.index_select(0, taken)
        found = torch.einsum("csn,chs,cst->chnt", window, given.index_select(0, taken), chosen)
        found = found * factors[:, None, None, None]
        capture.out.add_(found if per_head else found[:, 0])


def _shifted_columns(shift: GpuShift, taken: Tensor, columns: Tensor, mix: Tensor | None) -> Tensor:
    """[C, S, T]: what each shifted column gives to each captured one."""
    named = shift.columns.index_select(0, taken).long()
    if mix is not None:
        return mix.gather(1, named.clamp(min=0)[:, :, None].expand(-1, -1, mix.shape[2]))
    wanted = columns.long()[:, None]
    return ((named[:, :, None] == wanted) & (named[:, :, None] >= 0)).float()
