"""The tensors of one segment, as the rows of one group read them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle_kernels.attention.row_groups import RowGroup
from bridle_kernels.attention.segment import Segment


@dataclass(frozen=True, slots=True)
class Operands:
    """What makes the map: q [r, H, N, d], k [r, H, L, d], bias [r or 1, H or 1, N or 1, L] for r rows of a group.

    keys: [L], which of the segment's keys these are; None for all.
    """

    q: Tensor
    k: Tensor
    bias: Tensor | None
    keys: Tensor | None

    def row(self, index: int) -> "Operands":
        """Those of one row alone."""
        bias = self.bias if self.bias is None or len(self.bias) == 1 else self.bias[index : index + 1]
        return Operands(self.q[index : index + 1], self.k[index : index + 1], bias, self.keys)


def operands(q: Tensor, segment: Segment, group: RowGroup) -> Operands:
    """Reads the rows and cuts the lengths. q: [R, N, H, d]."""
    keys = _keys(segment, group, q.device)
    k = _read([piece.k for piece in segment.pieces], segment.k_rows, group, group.lengths)
    q = pick(q if segment.q_rows is None else q.index_select(0, segment.q_rows), group)
    bias = None if segment.bias is None else take(pick(segment.bias, group), 3, keys)
    return Operands(q.transpose(1, 2), k.transpose(1, 2), bias, keys)


def mixing(segment: Segment, group: RowGroup, keys: Tensor | None) -> Tensor | None:
    """[r or 1, L, values], what V is multiplied with, or None. keys: of the operands."""
    return None if segment.v_mix is None else take(pick(segment.v_mix, group), 1, keys)


def values(segment: Segment, group: RowGroup, mix: Tensor | None) -> Tensor:
    """v [r, H, L, d] of the keys that the group reads, pre-mixed."""
    cut = None if mix is not None else group.lengths
    v = _read([piece.v for piece in segment.pieces], segment.v_rows, group, cut)
    return (v if mix is None else _mixed(mix, v)).transpose(1, 2)


def pick(tensor: Tensor, group: RowGroup) -> Tensor:
    """The group's rows of a tensor [R or 1, ...]; one row stays one row."""
    if group.is_whole or tensor.shape[0] == 1:
        return tensor
    if len(group.rows) == 1:
        return tensor[group.rows[0] : group.rows[0] + 1]
    return tensor.index_select(0, torch.tensor(group.rows, device=tensor.device))


def take(tensor: Tensor, dim: int, keys: Tensor | None) -> Tensor:
    """The named keys of a dimension; all of them for None."""
    return tensor if keys is None else tensor.index_select(dim, keys)


def _keys(segment: Segment, group: RowGroup, device: torch.device) -> Tensor | None:
    sizes = [piece.k.shape[1] for piece in segment.pieces]
    if list(group.lengths) == sizes:
        return None
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    kept = [torch.arange(s, s + n, device=device) for s, n in zip(starts, group.lengths, strict=True)]
    return torch.cat(kept)


def _read(parts: list[Tensor], source: Tensor | None, group: RowGroup, lengths: tuple[int, ...] | None) -> Tensor:
    """Keys or values of all pieces as each row of the group reads them, [r, L, H, d]."""
    read = []
    for index, part in enumerate(parts):
        part = part if lengths is None else part[:, : lengths[index]]
        if part.shape[0] == 1:
            part = part.expand(len(group.rows), -1, -1, -1)
        elif source is not None:
            part = part.index_select(0, pick(source, group))
        else:
            part = pick(part, group)
        read.append(part)
    return read[0] if len(read) == 1 else torch.cat(read, 1)


def _mixed(mix: Tensor, v: Tensor) -> Tensor:
    """mix @ V in at least float32. Values that no key uses are not read."""
    dtype = accumulator(v.dtype)
    used = (mix != 0).any(1)[:, :, None, None]
    values = torch.where(used, v, 0.0).to(dtype)
    return torch.einsum("rkl,rlhd->rkhd", mix.to(dtype).expand(v.shape[0], -1, -1), values).to(v.dtype)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def within(columns: Tensor, keys: Tensor | None, count: int) -> Tensor:
    """Columns of a segment with `count` keys as int64 columns of the keys that are read; -1 for those that are not."""
    columns = columns.long()
    if keys is None:
        return columns
    place = torch.full((count,), -1, device=keys.device).index_copy(
        0, keys, torch.arange(len(keys), device=keys.device)
    )
    return torch.where(columns < 0, -1, place[columns.clamp(min=0)])
