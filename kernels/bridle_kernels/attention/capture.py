"""Captured columns of a shifted map: its products with unit vectors, added to the buffers of a `Capture`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle_kernels.attention.factor import Factor
from bridle_kernels.attention.operands import Operands, accumulator, within
from bridle_kernels.attention.row_groups import RowGroup
from bridle_kernels.attention.segment import Capture, Segment
from bridle_kernels.attention.shapes import value_count


@dataclass(frozen=True, slots=True)
class ProductCapture:
    """What a capture takes from one row. places: [c], the rows of `capture.out` that it goes to. factor: selects columns."""

    capture: Capture
    places: Tensor
    factor: Factor

    def add(self, product: Tensor) -> None:
        """Adds the captured columns [c, H or 1, N, S]."""
        columns = product if self.capture.out.ndim == 4 else product[:, 0]
        add_columns(self.capture, columns, self.places)


def add_columns(capture: Capture, columns: Tensor, places: Tensor) -> None:
    """Adds columns [c, (H,) N, S], scaled, to the rows `places` [c] of the buffer."""
    scale = capture.scale
    if isinstance(scale, Tensor):
        scale = scale.to(columns.dtype).index_select(0, places).view(-1, *[1] * (columns.ndim - 1))
    capture.out.index_add_(0, places, (columns * scale).to(capture.out.dtype))


def product_captures(segment: Segment, operands: Operands, mix: Tensor | None, row: RowGroup) -> list[ProductCapture]:
    """What of a segment's captures falls on a row. mix: V's pre-mix for it [1, L, values], or None."""
    found = []
    for capture in segment.captures:
        places = [place for place, number in enumerate(captured_rows(capture, row.count)) if number == row.rows[0]]
        if places:
            where = torch.tensor(places, device=operands.q.device)
            units = _units(capture, operands, mix is not None, value_count(segment), where)
            units = units if mix is None else mix.to(units.dtype) @ units
            found.append(ProductCapture(capture, where, Factor(units[:, None], capture.out.ndim == 3)))
    return found


def captured_rows(capture: Capture, count: int) -> list[int]:
    """The output row, of `count`, of each row of the buffer."""
    return list(range(count)) if capture.rows is None else capture.rows.tolist()


def _units(capture: Capture, operands: Operands, mixed: bool, values: int, places: Tensor) -> Tensor:
    """[c, L or values, S]: column s is the unit vector of the captured column s, or 0 for none. Float.

    mixed: the columns are values, not keys.
    """
    device = operands.q.device
    columns = torch.arange(values, device=device)[None] if capture.columns is None else capture.columns
    columns = columns.expand(len(places), -1) if columns.shape[0] == 1 else columns.index_select(0, places)
    keys = values if mixed else operands.k.shape[2]
    columns = within(columns, None if mixed else operands.keys, values)
    numbers = torch.arange(keys, device=device)[:, None]
    return (numbers == columns[:, None]).to(accumulator(operands.q.dtype))
