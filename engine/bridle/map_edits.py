"""Edits of the text's map at one attention site, for a batch of rows: what is added to scores, and what mass moves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.column_room import column_room
from bridle.lowering import TokenBias, TokenShift
from bridle.uploads import sent
from bridle_kernels.attention import MassShift

ActiveBias = tuple[int, TokenBias, float, Tensor]
"""A row, one of its biases, its strength in the row's step and its map [N]."""
ActiveShift = tuple[int, TokenShift, float, Tensor]
"""A row, one of its shifts, its share in the row's step and its window [N]."""


def active_biases(biases: Sequence[Sequence[TokenBias]], steps: Sequence[int], site: int) -> list[ActiveBias]:
    """Of all rows, those that do something. biases, steps: of each row."""
    return [
        (row, bias, float(bias.scale[step]), values)
        for row, (own, step) in enumerate(zip(biases, steps, strict=True))
        for bias in own
        if bias.scale[step] != 0.0 and (values := bias.maps[site]) is not None
    ]


def stack_biases(active: Sequence[ActiveBias], rows: int, length: int, device: torch.device) -> Tensor:
    """[R, 1, N, L] of at least one bias."""
    positions = active[0][3].shape[0]
    total = torch.zeros((rows, 1, positions, length), device=device)
    for row, bias, scale, values in active:
        for column in bias.columns:
            total[row, 0, :, column] += scale * values
    return total


def active_shifts(shifts: Sequence[Sequence[TokenShift]], steps: Sequence[int], site: int) -> list[ActiveShift]:
    """Of all rows, those that do something. shifts, steps: of each row."""
    return [
        (row, shift, float(shift.share[step]), window)
        for row, (own, step) in enumerate(zip(shifts, steps, strict=True))
        for shift in own
        if shift.share[step] != 0.0 and (window := shift.windows[site]) is not None
    ]


def stack_shifts(active: Sequence[ActiveShift], rows: int, device: torch.device) -> MassShift:
    """Columns [R, S], shares [R, S] and windows [R, S, N] of at least one shift; -1 fills the columns of rows with fewer.

    S is `column_room` of the most that a row has: other words are then the same shapes.
    """
    counts = [0] * rows
    for row, shift, _, _ in active:
        counts[row] += len(shift.columns)
    most = column_room(max(counts))
    columns = torch.full((rows, most), -1, dtype=torch.int32)
    share = torch.zeros((rows, most))
    windows = active[0][3].new_zeros((rows, most, active[0][3].shape[0]))
    filled = [0] * rows
    for row, shift, part, window in active:
        place = slice(filled[row], filled[row] + len(shift.columns))
        columns[row, place] = torch.tensor(shift.columns, dtype=torch.int32)
        share[row, place] = part
        windows[row, place] = window
        filled[row] = place.stop
    return MassShift(sent(columns, device), sent(share, device), windows)
