"""Captured columns of a map: its products with unit vectors, added to the buffers of a `Capture`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle_kernels.attention.factor import Factor
from bridle_kernels.attention.operands import Operands, accumulator, within
from bridle_kernels.attention.row_groups import RowGroup
from bridle_kernels.attention.segment import Capture


@dataclass(frozen=True, slots=True)
class GroupCapture:
    """The part of a capture that one group of rows fills. places: [r'] rows of `capture.out`. factor: selects columns."""

    capture: Capture
    places: Tensor
    factor: Factor

    def add(self, product: Tensor) -> None:
        """Adds the captured columns [r', H or 1, N, S]."""
        out, scale = self.capture.out, self.capture.scale
        if isinstance(scale, Tensor):
            scale = scale.to(product.dtype).index_select(0, self.places)[:, None, None, None]
        columns = product * scale
        out.index_add_(0, self.places, (columns if out.ndim == 4 else columns[:, 0]).to(out.dtype))


def group_capture(capture: Capture, operands: Operands, group: RowGroup, values: int) -> GroupCapture | None:
    """What of a capture falls on a group; None if nothing does. values: of the segment, which the columns count."""
    device = operands.q.device
    wanted = range(group.count) if capture.rows is None else capture.rows.tolist()
    found = [(place, group.rows.index(row)) for place, row in enumerate(wanted) if row in group.rows]
    if not found:
        return None
    places, rows = torch.tensor(found, device=device).unbind(1)
    units = _units(capture, operands, values, places)
    if operands.mix is not None:
        mix = operands.mix.to(units.dtype)
        units = (mix if mix.shape[0] == 1 else mix.index_select(0, rows)) @ units
    return GroupCapture(capture, places, Factor(units[:, None], rows, capture.out.ndim == 3))


def _units(capture: Capture, operands: Operands, values: int, places: Tensor) -> Tensor:
    """[r' or 1, L, S]: column s is the unit vector of the captured column s, or 0 for none. Float."""
    device = operands.q.device
    columns = torch.arange(values, device=device)[None] if capture.columns is None else capture.columns
    columns = columns if columns.shape[0] == 1 else columns.index_select(0, places)
    keys = values if operands.mix is not None else operands.k.shape[2]
    columns = within(columns, None if operands.mix is not None else operands.keys, values)
    numbers = torch.arange(keys, device=device)[:, None]
    return (numbers == columns[:, None]).to(accumulator(operands.q.dtype))
