"""What needs the map while it is summed up: the outputs of shifted maps, and what they report. One row at a time."""

import torch
from torch import Tensor

from bridle_kernels.attention.capture import ProductCapture, product_captures
from bridle_kernels.attention.effective_map import Products, multiply
from bridle_kernels.attention.factor import Factor
from bridle_kernels.attention.mass_shift import resolve_shift
from bridle_kernels.attention.operands import accumulator, mixing, operands, values
from bridle_kernels.attention.reports import store_rows
from bridle_kernels.attention.row_groups import RowGroup
from bridle_kernels.attention.segment import MassShift, Segment
from bridle_kernels.attention.shapes import key_count


def shifted(q: Tensor, segment: Segment, mass: MassShift, group: RowGroup, scale: float) -> Tensor:
    """The output [r, N, H, d] of a segment with a mass shift, before its weight; reports on the way."""
    return torch.cat([_shifted_row(q, segment, mass, row, scale) for row in group.split()])


def _shifted_row(q: Tensor, segment: Segment, mass: MassShift, row: RowGroup, scale: float) -> Tensor:
    read = operands(q, segment, row)
    mix = mixing(segment, row, read.keys)
    captures = product_captures(segment, read, mix, row)
    v = values(segment, row, mix)
    factors = [*(capture.factor for capture in captures), Factor(v.to(accumulator(v.dtype)))]
    shift = resolve_shift(mass, read, row, key_count(segment))
    result = multiply(read, scale, factors, shift, segment.lse is not None)
    _store(segment, mass, row, captures, result)
    return result.products[-1].transpose(1, 2)


def _store(segment: Segment, mass: MassShift, row: RowGroup, captures: list[ProductCapture], result: Products) -> None:
    """Puts what a row reports into the buffers. The products of the captures come first."""
    for capture, columns in zip(captures, result.products, strict=False):
        capture.add(columns)
    if mass.out is not None:
        store_rows(mass.out, result.masses, row)
    if segment.lse is not None and result.lse is not None:
        store_rows(segment.lse, result.lse, row)
