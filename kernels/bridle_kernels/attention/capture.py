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
class GroupCapture:
    """The part of a capture that one group of rows fills. places: [r'] rows of `capture.out`. factor: selects columns."""

    capture: Capture
    places: Tensor
    factor: Factor

    def add(self, product: Tensor) -> None:
        """Adds the captured columns [r', H or 1, N, S]."""
        columns = product if self.capture.out.ndim == 4 else product[:, 0]
        add_columns(self.capture, columns, self.places)


def add_columns(capture: Capture, columns: Tensor, places: Tensor) -> None:
    """Adds columns [r', (H,) N, S], scaled, to the rows `places` [r'] of the buffer."""
    scale = capture.scale
    if isinstance(scale, Tensor):
        scale = scale.to(columns.dtype).index_select(0, places).view(-1, *[1] * (columns.ndim - 1))
    capture.out.index_add_(0, places, (columns * scale).to(capture.out.dtype))


def group_captures(segment: Segment, operands: Operands, mix: Tensor | None, group: RowGroup) -> list[GroupCapture]:
    """What of a segment's captures falls on a group. mix: V's pre-mix for its rows, or None."""
    captures = (_group_capture(c, operands, mix, group, value_count(segment)) for c in segment.captures)
    return [capture for capture in captures if capture is not None]


def _group_capture(
    capture: Capture, operands: Operands, mix: Tensor | None, group: RowGroup, values: int
) -> GroupCapture | None:
    """values: of the segment, which the columns count."""
    wanted = captured_rows(capture, group.count)
    found = [(place, group.rows.index(row)) for place, row in enumerate(wanted) if row in group.rows]
    if not found:
        return None
    places, rows = torch.tensor(found, device=operands.q.device).unbind(1)
    units = _units(capture, operands, mix is not None, values, places)
    if mix is not None:
        mix = mix.to(units.dtype)
        units = (mix if mix.shape[0] == 1 else mix.index_select(0, rows)) @ units
    return GroupCapture(capture, places, Factor(units[:, None], rows, capture.out.ndim == 3))


def captured_rows(capture: Capture, count: int) -> list[int]:
    """The output row, of `count`, of each row of the buffer."""
    return list(range(count)) if capture.rows is None else capture.rows.tolist()


def _units(capture: Capture, operands: Operands, mixed: bool, values: int, places: Tensor) -> Tensor:
    """[r' or 1, L or values, S]: column s is the unit vector of the captured column s, or 0 for none. Float.

    mixed: the columns are values, not keys.
    """
    device = operands.q.device
    columns = torch.arange(values, device=device)[None] if capture.columns is None else capture.columns
    columns = columns if columns.shape[0] == 1 else columns.index_select(0, places)
    keys = values if mixed else operands.k.shape[2]
    columns = within(columns, None if mixed else operands.keys, values)
    numbers = torch.arange(keys, device=device)[:, None]
    return (numbers == columns[:, None]).to(accumulator(operands.q.dtype))
