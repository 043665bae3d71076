"""What the GPU kernels take of one segment: every index in GPU memory, so that nothing waits for the GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle_kernels.attention.segment import Capture, MassShift, Segment
from bridle_kernels.attention.shapes import key_count, value_count


@dataclass(frozen=True, slots=True)
class GpuShift:
    """A `MassShift` for R rows. columns: [R, S] int32, -1 for none. share: [R, S], 0 where there is none. window:
    [R, S, N]. keep: [R, L], what stays in each column."""

    columns: Tensor
    share: Tensor
    window: Tensor
    keep: Tensor


@dataclass(frozen=True, slots=True)
class GpuSegment:
    """One segment for R rows.

    k, v: per piece, [rows, L, H, d]. q_rows, k_rows, v_rows: [R] int32, never negative. lengths: [P, R] int32, 0 where a
    row does not have the segment. bias: [R, H, N, L], expanded, its keys consecutive, or None. weight: [R, N] float32 or
    None. seen: [R, L], keys that are read. shift, and named [R, S, H, d], the values of its columns in float32, or None.
    float32: computed from float32 copies of values of another dtype.
    """

    k: Sequence[Tensor]
    v: Sequence[Tensor]
    q_rows: Tensor
    k_rows: Tensor
    v_rows: Tensor
    lengths: Tensor
    bias: Tensor | None
    weight: Tensor | None
    seen: Tensor
    shift: GpuShift | None
    named: Tensor | None
    float32: bool


def gpu_segment(q: Tensor, segment: Segment, float32_scores: bool) -> GpuSegment:
    """Reads the fields. q: [R, N, H, d]."""
    rows, queries, heads, _ = q.shape
    own = torch.arange(rows, dtype=torch.int32, device=q.device)
    k_rows, v_rows, q_rows = (
        own if given is None else given.to(torch.int32) for given in (segment.k_rows, segment.v_rows, segment.q_rows)
    )
    weight = _weight(segment, rows, queries, q.device)
    lengths = _lengths(segment, rows, q.device) * ((k_rows >= 0) & (v_rows >= 0))
    if weight is not None and not segment.reads_map:
        lengths = lengths * (weight != 0.0).any(1)
    seen = _seen(segment, lengths)
    keys = [dense(piece.k) for piece in segment.pieces]
    values: Sequence[Tensor] = [dense(piece.v) for piece in segment.pieces]
    v_rows = v_rows.clamp(min=0)
    shift = None if segment.mass is None else _shift(segment.mass, segment, seen, queries)
    named = None
    if segment.v_mix is not None or shift is not None:
        whole, v_rows = _gathered(values, v_rows), own
        if segment.v_mix is not None:
            whole = _mixed(segment.v_mix, whole, seen)
        if shift is not None:
            whole = torch.where(seen[:, :, None, None], whole.float(), 0.0)
            named = whole.gather(
                1, shift.columns.long().clamp(min=0)[:, :, None, None].expand(-1, -1, *whole.shape[2:])
            )
            whole = whole * shift.keep[:, :, None, None]
        values = torch.split(whole, [piece.k.shape[1] for piece in segment.pieces], 1)
    bias = None if segment.bias is None else dense(segment.bias).expand(rows, heads, queries, key_count(segment))
    return GpuSegment(
        k=keys,
        v=values,
        q_rows=q_rows,
        k_rows=k_rows.clamp(min=0),
        v_rows=v_rows,
        lengths=lengths.to(torch.int32).contiguous(),
        bias=bias,
        weight=weight,
        seen=seen,
        shift=shift,
        named=named,
        float32=q.dtype != torch.float32 and (float32_scores or shift is not None),
    )


def dense(tensor: Tensor) -> Tensor:
    """With consecutive channels."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _gathered(parts: Sequence[Tensor], rows: Tensor) -> Tensor:
    count = rows.shape[0]
    return torch.cat([p.expand(count, -1, -1, -1) if p.shape[0] == 1 else p.index_select(0, rows) for p in parts], 1)


def _weight(segment: Segment, rows: int, queries: int, device: torch.device) -> Tensor | None:
    weight = segment.weight
    if isinstance(weight, Tensor):
        return weight.float().view(rows, -1).expand(rows, queries).contiguous()
    return None if weight == 1.0 else torch.full((rows, queries), float(weight), device=device)


def _lengths(segment: Segment, rows: int, device: torch.device) -> Tensor:
    """[P, R]."""
    whole = [torch.full((rows,), piece.k.shape[1], dtype=torch.int32, device=device) for piece in segment.pieces]
    return torch.stack([w if p.length is None else p.length.int() for w, p in zip(whole, segment.pieces, strict=True)])


def _seen(segment: Segment, lengths: Tensor) -> Tensor:
    """[R, L], which of the concatenated keys each row reads."""
    parts = [
        torch.arange(piece.k.shape[1], device=lengths.device)[None] < length[:, None]
        for piece, length in zip(segment.pieces, lengths, strict=True)
    ]
    return torch.cat(parts, 1)


def _shift(mass: MassShift, segment: Segment, seen: Tensor, queries: int) -> GpuShift:
    rows, count = seen.shape[0], mass.columns.shape[1]
    columns = mass.columns.long().expand(rows, count)
    index = columns.clamp(min=0)
    named = (columns >= 0) & seen.gather(1, index)
    share = named.float() * (mass.share.float() if isinstance(mass.share, Tensor) else mass.share)
    # Several shifts of one column are a sum in a fixed order: those of scatter_add are atomic on a GPU.
    is_column = index[:, :, None] == torch.arange(seen.shape[1], device=seen.device)
    keep = 1.0 - torch.where(is_column, share[:, :, None], 0.0).sum(1)
    columns = torch.where(named, columns, -1).to(torch.int32).contiguous()
    return GpuShift(columns, share, mass.window.float().expand(rows, count, queries), keep)


def read_mix(mix: Tensor, seen: Tensor) -> Tensor:
    """[R, L, values]: the pre-mix of each row, 0 for keys that it does not read."""
    return torch.where(seen[:, :, None], mix.float(), 0.0)


def _mixed(mix: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """mix @ V in float32. Values that no key uses are not read."""
    read = read_mix(mix, seen)
    used = torch.where((read != 0).any(1)[:, :, None, None], values, 0.0).float()
    return torch.einsum("rkl,rlhd->rkhd", read, used).to(values.dtype)


def numbers(value: float | Tensor, count: int, device: torch.device) -> Tensor:
    """[count] float32 of a number, a tensor of one, or [count]."""
    if isinstance(value, Tensor):
        return value.float().expand(count).contiguous()
    return torch.full((count,), float(value), device=device)


def capture_columns(segment: Segment, capture: Capture, device: torch.device) -> Tensor:
    """The columns of a capture, [C or 1, S] int32."""
    if capture.columns is None:
        return torch.arange(value_count(segment), dtype=torch.int32, device=device)[None]
    return capture.columns.to(torch.int32).contiguous()


def column_mix(mix: Tensor, seen: Tensor, taken: Tensor, columns: Tensor) -> Tensor:
    """[C, L, S]: the captured columns of each captured row's pre-mix, 0 for column -1."""
    read = read_mix(mix, seen).index_select(0, taken)
    index = columns.long().expand(len(taken), -1)[:, None].expand(-1, read.shape[1], -1)
    return torch.where(index >= 0, read.gather(2, index.clamp(min=0)), 0.0)
