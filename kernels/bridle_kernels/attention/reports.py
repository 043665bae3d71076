"""What a segment without a mass shift reports: captured columns, read off its map, and log-sum-exps. One row at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle_kernels.attention.capture import captured_rows
from bridle_kernels.attention.operands import Operands
from bridle_kernels.attention.row_groups import RowGroup
from bridle_kernels.attention.segment import Capture, Segment
from bridle_kernels.attention.softmax_map import map_slices


def clear_reports(segment: Segment) -> None:
    """What rows without the segment report: no mass, and the logarithm of 0. Captures only ever add."""
    if segment.mass is not None and segment.mass.out is not None:
        segment.mass.out.zero_()
    if segment.lse is not None:
        segment.lse.fill_(-torch.inf)


def report(read: Operands, mix: Tensor | None, segment: Segment, group: RowGroup, scale: float) -> None:
    """Captures and log-sum-exps of the rows of a group. mix: V's pre-mix, [r or 1, L, values] or None."""
    wanted = [captured_rows(capture, group.count) for capture in segment.captures]
    for index, number in enumerate(group.rows):
        captures = [
            _row_capture(capture, place, read, None if mix is None else _row_of(mix, index))
            for capture, rows in zip(segment.captures, wanted, strict=True)
            for place, row in enumerate(rows)
            if row == number
        ]
        if captures or segment.lse is not None:
            _report_row(read.row(index), captures, None if segment.lse is None else segment.lse[number], scale)


def _report_row(read: Operands, captures: "list[RowCapture]", lse: Tensor | None, scale: float) -> None:
    """read: of one row. lse: [H, N], is overwritten, or None."""
    start = 0
    for part in map_slices(read, scale):
        count = part.probabilities.shape[2]
        for capture in captures:
            capture.add(part.probabilities[0], start)
        if lse is not None:
            lse[:, start : start + count] = part.log_sum_exp()[0]
        start += count


@dataclass(frozen=True, slots=True)
class RowCapture:
    """Columns of one row's map, and where they go.

    out: [H, N, S] or [N, S], the row of the buffer. columns: [s], of those that are read, None for all. places: [s], of the
    buffer's, None for all. mix: [L, values], what the map is multiplied with first, or None.
    """

    out: Tensor
    scale: float | Tensor
    columns: Tensor | None
    places: Tensor | None
    mix: Tensor | None

    def add(self, probabilities: Tensor, start: int) -> None:
        """Adds the columns of consecutive queries, [H, n, L], the first of which is `start`."""
        found = probabilities if self.mix is None else probabilities @ self.mix.to(probabilities.dtype)
        found = found if self.columns is None else found.index_select(2, self.columns)
        factor, target = 1.0, self.out.narrow(-2, start, found.shape[1])
        if self.out.ndim == 2:
            found, factor = found.sum(0), 1.0 / len(found)
        if isinstance(self.scale, Tensor):
            found = found * self.scale
        else:
            factor *= self.scale
        if self.places is None:
            target.add_(found, alpha=factor)
        else:
            target.index_add_(-1, self.places, found.to(target.dtype), alpha=factor)


def _row_capture(capture: Capture, place: int, read: Operands, mix: Tensor | None) -> RowCapture:
    """What goes to row `place` of a buffer. Columns of a mixed map are values: all of them are read."""
    columns = None if capture.columns is None else _row_of(capture.columns, place)
    chosen, places = _chosen(columns, read.keys if mix is None else None)
    if mix is not None and chosen is not None:
        mix, chosen = mix.index_select(1, chosen), None
    scale = capture.scale[place] if isinstance(capture.scale, Tensor) else capture.scale
    return RowCapture(capture.out[place], scale, chosen, places, mix)


def _row_of(tensor: Tensor, index: int) -> Tensor:
    """A row of a tensor whose only row may stand for all."""
    return tensor[0] if len(tensor) == 1 else tensor[index]


def _chosen(columns: Tensor | None, kept: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Which of the kept columns go to which of the buffer's, [s] each, None for all. columns: [S], of the segment."""
    if columns is None:
        return None, kept
    numbers = columns.tolist()
    if kept is None and min(numbers, default=0) >= 0:
        return columns.long(), None
    if kept is not None:
        index = {key: i for i, key in enumerate(kept.tolist())}
        numbers = [index.get(number, -1) for number in numbers]
    found = [(column, place) for place, column in enumerate(numbers) if column >= 0]
    chosen, places = torch.tensor(found, dtype=torch.int64, device=columns.device).view(-1, 2).unbind(1)
    return chosen, places


def store_rows(out: Tensor, values: Tensor, group: RowGroup) -> None:
    """Overwrites a group's rows [r, ...] of a buffer [R, ...]."""
    out.index_copy_(0, torch.tensor(group.rows, device=out.device), values.to(out.dtype))
