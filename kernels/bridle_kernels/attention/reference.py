"""The definition in plain PyTorch.

    out_r(n) = sum_s  w_s,r(n) * softmax_L(scale * q_[q_rows_s(r)](n) . K_[k_rows_s(r)] + bias_s) @ V_[v_rows_s(r)]

A segment s has one softmax over the concatenation of its pieces. Left for later versions, and therefore not parameters
yet: pre-mixed V, gate and beta, capture of maps, column mass, log-sum-exp.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """Keys k [Rk, L, H, d] and values v [Rv, L, H, d]. length: [R] int32 valid keys per output row, None for all L.

    What lies behind the length is never read, NaN included.
    """

    k: Tensor
    v: Tensor
    length: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One softmax.

    weight: factor of its output; a number, per row [R], or per row and query [R, N]. k_rows, v_rows, q_rows: [R] int32,
    the row of K, V and Q that each output row reads; None means its own row, or the only row of K or V there is; -1 in
    k_rows or v_rows means that the row has no such segment. bias: added to the scaled scores, [R or 1, H or 1, N or 1, L]
    over the concatenated pieces; -inf hides a key. A query without any visible key gets 0 from the segment.
    """

    pieces: tuple[Piece, ...]
    weight: float | Tensor = 1.0
    k_rows: Tensor | None = None
    v_rows: Tensor | None = None
    q_rows: Tensor | None = None
    bias: Tensor | None = None


def attention(
    q: Tensor,
    segments: Sequence[Segment],
    *,
    scale: float | None = None,
    causal: bool = False,
    float32_scores: bool = False,
) -> Tensor:
    """[R, N, H*d] of queries q [R, N, H, d].

    scale: d^-0.5 if None. causal: query n sees keys 0..n (one plain segment only). float32_scores: scores and softmax
    are computed from float32 copies. Raises ValueError for shapes that do not fit.
    """
    if not segments:
        raise ValueError("attention: segments is empty, wants at least one")
    rows, _, heads, dim = q.shape
    for segment in segments:
        _check(segment, rows, heads, dim)
    if causal and (len(segments) > 1 or _is_masked(segments[0])):
        raise ValueError("attention: causal wants one segment without lengths, rows to skip, or bias")
    out = None
    for segment in segments:
        term = _weighted(_segment(q, segment, scale, causal, float32_scores), segment.weight)
        out = term if out is None else out + term
    assert out is not None
    return out.transpose(1, 2).flatten(2)


def _segment(q: Tensor, segment: Segment, scale: float | None, causal: bool, float32_scores: bool) -> Tensor:
    """One segment's output before its weight: [R, H, N, d]."""
    q = q if segment.q_rows is None else q.index_select(0, segment.q_rows.long())
    k = _gather(segment, segment.k_rows, [piece.k for piece in segment.pieces], q.shape[0])
    v = _gather(segment, segment.v_rows, [piece.v for piece in segment.pieces], q.shape[0])
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    dtype = q.dtype
    if float32_scores:
        q, k, v = q.float(), k.float(), v.float()
    if not _is_masked(segment):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).to(dtype)
    bias = _bias(segment, q)
    blind = (bias == -torch.inf).all(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(blind, 0.0), scale=scale)
    return out.masked_fill(blind, 0.0).to(dtype)


def _gather(segment: Segment, source: Tensor | None, parts: list[Tensor], rows: int) -> Tensor:
    """Keys or values of all pieces as each output row reads them, [R, L, H, d], zero behind the lengths."""
    read = []
    for piece, part in zip(segment.pieces, parts, strict=True):
        if source is not None:
            part = part.index_select(0, source.long().clamp(min=0))
        elif part.shape[0] != rows:
            part = part.expand(rows, -1, -1, -1)
        if piece.length is not None:
            part = part.masked_fill(~_visible(piece.length, part.shape[1])[:, :, None, None], 0.0)
        read.append(part)
    return read[0] if len(read) == 1 else torch.cat(read, 1)


def _visible(length: Tensor, keys: int) -> Tensor:
    """[R, L]: whether a key is within its row's length."""
    return torch.arange(keys, device=length.device) < length[:, None]


def _is_masked(segment: Segment) -> bool:
    lengths = any(piece.length is not None for piece in segment.pieces)
    absent = any(source is not None and bool((source < 0).any()) for source in (segment.k_rows, segment.v_rows))
    return lengths or absent or segment.bias is not None


def _bias(segment: Segment, q: Tensor) -> Tensor:
    """Bias, lengths and absent rows as one additive mask [R or 1, H or 1, N or 1, L]; -inf hides a key."""
    hidden = torch.cat([_hidden(piece, q) for piece in segment.pieces], 1)
    for source in (segment.k_rows, segment.v_rows):
        if source is not None:
            hidden = hidden | (source < 0)[:, None]
    bias = q.new_zeros(()) if segment.bias is None else segment.bias.to(q.dtype)
    return torch.where(hidden[:, None, None, :], -torch.inf, bias)


def _hidden(piece: Piece, q: Tensor) -> Tensor:
    keys = piece.k.shape[1]
    if piece.length is None:
        return torch.zeros((q.shape[0], keys), dtype=torch.bool, device=q.device)
    return ~_visible(piece.length, keys)


def _weighted(out: Tensor, weight: float | Tensor) -> Tensor:
    if not isinstance(weight, Tensor):
        return out if weight == 1.0 else out * weight
    factor = weight[:, None, None, None] if weight.ndim == 1 else weight[:, None, :, None]
    return out * factor.to(out.dtype)


def _check(segment: Segment, rows: int, heads: int, dim: int) -> None:
    if not segment.pieces:
        raise ValueError("attention: a segment has no pieces")
    for piece in segment.pieces:
        for name, part, source in (("k", piece.k, segment.k_rows), ("v", piece.v, segment.v_rows)):
            if part.ndim != 4 or part.shape[1:] != (piece.k.shape[1], heads, dim):
                raise ValueError(f"attention: {name} is {tuple(part.shape)}, wants [rows, L, {heads}, {dim}]")
            if source is None and part.shape[0] not in (1, rows):
                raise ValueError(f"attention: {name} has {part.shape[0]} rows, wants 1, {rows}, or row indices")
    for name in ("k_rows", "v_rows", "q_rows"):
        source = getattr(segment, name)
        if source is not None and source.shape != (rows,):
            raise ValueError(f"attention: {name} is {tuple(source.shape)}, wants [{rows}]")
