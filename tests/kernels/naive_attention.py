"""The naive method: build each row's whole map, edit it, multiply it with V. In any dtype, with PyTorch's own operations."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bridle_kernels.attention import Capture, MassShift, Segment


@dataclass
class Naive:
    """out [R, N, H*d], and per segment what it reports: captures, masses [R, H, S] and log-sum-exps [R, H, N]."""

    out: Tensor
    captures: list[list[Tensor]] = field(default_factory=list)
    masses: list[Tensor | None] = field(default_factory=list)
    lses: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)


def naive_attention(
    q: Tensor, segments: Sequence[Segment], scale: float | None = None, dtype: torch.dtype = torch.float64
) -> Naive:
    """Everything that the op computes, from whole maps."""
    rows, queries, heads, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    result = Naive(torch.zeros(rows, queries, heads, dim, dtype=dtype, device=q.device))
    for segment in segments:
        plain = [plain_map(q, segment, r, scale, dtype) for r in range(rows)]
        maps = [p if segment.mass is None else shifted(p, segment.mass, r) for r, (p, _) in enumerate(plain)]
        mixes = [mix_of(segment, r, dtype) for r in range(rows)]
        maps = [p if mix is None else p @ mix for p, mix in zip(maps, mixes, strict=True)]
        for r in range(rows):
            result.out[r] += weight_of(segment, r, dtype) * (maps[r] @ values_of(segment, r, maps[r])).transpose(0, 1)
        result.maps.append(torch.stack(maps))
        result.captures.append([captured(maps, capture) for capture in segment.captures])
        result.lses.append(torch.stack([lse for _, lse in plain]))
        result.masses.append(None if segment.mass is None else masses([p for p, _ in plain], segment.mass))
    result.out = result.out.flatten(2)
    return result


def source(rows: Tensor | None, r: int, count: int) -> int:
    """The row that output row r reads of `count` rows; -1 for none."""
    index = r if rows is None else int(rows[r])
    return index if index < 0 or count > 1 else 0


def plain_map(q: Tensor, segment: Segment, r: int, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The map [H, N, L] of a row, 0 where nothing is visible, and its log-sum-exp [H, N]."""
    own = q[r if segment.q_rows is None else int(segment.q_rows[r])].to(dtype)
    scores = []
    for piece in segment.pieces:
        row = source(segment.k_rows, r, piece.k.shape[0])
        present = row >= 0 and source(segment.v_rows, r, piece.v.shape[0]) >= 0
        length = piece.k.shape[1] if piece.length is None else int(piece.length[r])
        part = scale * torch.einsum("nhd,lhd->hnl", own, piece.k[max(row, 0)].to(dtype))
        part[:, :, length if present else 0 :] = -torch.inf
        scores.append(part)
    total = torch.cat(scores, 2)
    if segment.bias is not None:
        total = total + segment.bias[r % segment.bias.shape[0]].to(dtype)
    return total.softmax(-1).nan_to_num(0.0), total.logsumexp(-1)


def shifted(p: Tensor, mass: MassShift, r: int) -> Tensor:
    """The forward guidance on a map [H, N, L], column by column."""
    edited = p.clone()
    for s, column in enumerate(mass.columns[r % mass.columns.shape[0]].tolist()):
        if column >= 0:
            share = mass.share if isinstance(mass.share, float) else mass.share[r % mass.share.shape[0], s].to(p.dtype)
            window = mass.window[r % mass.window.shape[0]]
            window = window[s % window.shape[0]].to(p.dtype)
            edited[:, :, column] += share * (p[:, :, column].sum(1, keepdim=True) * window - p[:, :, column])
    return edited


def mix_of(segment: Segment, r: int, dtype: torch.dtype) -> Tensor | None:
    return None if segment.v_mix is None else segment.v_mix[r % segment.v_mix.shape[0]].to(dtype)


def values_of(segment: Segment, r: int, edited: Tensor) -> Tensor:
    """[H, L, d], 0 where no query looks."""
    rows = [piece.v[max(source(segment.v_rows, r, piece.v.shape[0]), 0)] for piece in segment.pieces]
    values = torch.cat(rows).to(edited.dtype).transpose(0, 1)
    return torch.where((edited != 0).any(1)[..., None], values, 0.0)


def weight_of(segment: Segment, r: int, dtype: torch.dtype) -> Tensor | float:
    if isinstance(segment.weight, float):
        return segment.weight
    return segment.weight[r].to(dtype).reshape(-1, 1, 1)


def captured(maps: list[Tensor], capture: Capture) -> Tensor:
    """[C, H, N, S] or [C, N, S], what is added to the buffer."""
    rows = range(len(maps)) if capture.rows is None else capture.rows.tolist()
    parts = []
    for place, row in enumerate(rows):
        columns = range(maps[row].shape[2])
        if capture.columns is not None:
            columns = capture.columns[place % capture.columns.shape[0]].tolist()
        chosen = [maps[row][:, :, c] if c >= 0 else torch.zeros_like(maps[row][:, :, 0]) for c in columns]
        scale = capture.scale if isinstance(capture.scale, float) else capture.scale[place].to(maps[row].dtype)
        parts.append(scale * torch.stack(chosen, 2))
    stacked = torch.stack(parts)
    return stacked if capture.out.ndim == 4 else stacked.mean(1)


def masses(maps: list[Tensor], mass: MassShift) -> Tensor:
    """[R, H, S], sums of the columns before the shift."""
    parts = []
    for r, p in enumerate(maps):
        columns = mass.columns[r % mass.columns.shape[0]].tolist()
        parts.append(torch.stack([p[:, :, c].sum(1) if c >= 0 else torch.zeros_like(p[:, 0, 0]) for c in columns], 1))
    return torch.stack(parts)
