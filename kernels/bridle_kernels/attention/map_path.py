"""What needs the map: the outputs of shifted maps and everything that a segment reports. One row at a time."""

import torch
from torch import Tensor

from bridle_kernels.attention.capture import GroupCapture, captured_rows, group_captures
from bridle_kernels.attention.effective_map import Products, multiply
from bridle_kernels.attention.factor import Factor
from bridle_kernels.attention.mass_shift import resolve_shift
from bridle_kernels.attention.operands import accumulator, operands
from bridle_kernels.attention.row_groups import RowGroup
from bridle_kernels.attention.segment import MassShift, Segment
from bridle_kernels.attention.shapes import key_count


def clear_reports(segment: Segment) -> None:
    """What rows without the segment report: no mass, and the logarithm of 0. Captures only ever add."""
    if segment.mass is not None and segment.mass.out is not None:
        segment.mass.out.zero_()
    if segment.lse is not None:
        segment.lse.fill_(-torch.inf)


def report(q: Tensor, segment: Segment, group: RowGroup, scale: float) -> None:
    """Captures and log-sum-exps of a segment whose output is computed elsewhere."""
    members = captured_rows(segment.captures, group) if segment.lse is None else group
    for row in members.split():
        read = operands(q, segment, row)
        captures = group_captures(segment, read, row)
        result = multiply(read, scale, [capture.factor for capture in captures], None, segment.lse is not None)
        _store(segment, row, captures, result)


def shifted(q: Tensor, segment: Segment, mass: MassShift, group: RowGroup, scale: float) -> Tensor:
    """The output [r, N, H, d] of a segment with a mass shift, before its weight; reports on the way."""
    return torch.cat([_shifted_row(q, segment, mass, row, scale) for row in group.split()])


def _shifted_row(q: Tensor, segment: Segment, mass: MassShift, row: RowGroup, scale: float) -> Tensor:
    read = operands(q, segment, row)
    captures = group_captures(segment, read, row)
    factors = [*(capture.factor for capture in captures), Factor(read.v.to(accumulator(read.v.dtype)))]
    shift = resolve_shift(mass, read, row, key_count(segment))
    result = multiply(read, scale, factors, shift, segment.lse is not None)
    _store(segment, row, captures, result)
    return result.products[-1].transpose(1, 2)


def _store(segment: Segment, group: RowGroup, captures: list[GroupCapture], result: Products) -> None:
    """Puts what a group of rows reports into the buffers. The products of the captures come first."""
    for capture, columns in zip(captures, result.products, strict=False):
        capture.add(columns)
    if segment.mass is not None and segment.mass.out is not None and result.masses is not None:
        _store_rows(segment.mass.out, result.masses, group)
    if segment.lse is not None and result.lse is not None:
        _store_rows(segment.lse, result.lse, group)


def _store_rows(out: Tensor, values: Tensor, group: RowGroup) -> None:
    out.index_copy_(0, torch.tensor(group.rows, device=out.device), values.to(out.dtype))
