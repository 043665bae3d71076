"""Edits of the text's map at one attention site, for a batch of rows: what is added to scores, and what mass moves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.lowering import TokenBias, TokenShift
from bridle_kernels.attention import MassShift

ActiveBias = tuple[int, TokenBias, float, Tensor]
"""A row, one of its biases, its strength in the row's step and its map [N]."""


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
        total[row, 0][:, list(bias.columns)] += scale * values[:, None]
    return total


def stack_shifts(
    shifts: Sequence[Sequence[TokenShift]], steps: Sequence[int], site: int, device: torch.device
) -> MassShift | None:
    """Columns [R, S], shares [R, S] and windows [R, S, N]; -1 fills the columns of rows that have fewer."""
    active = [
        [(shift, window) for shift in own if shift.share[step] != 0.0 and (window := shift.windows[site]) is not None]
        for own, step in zip(shifts, steps, strict=True)
    ]
    most = max(sum(len(shift.columns) for shift, _ in own) for own in active)
    if not most:
        return None
    like = next(window for own in active for _, window in own)
    columns = torch.full((len(active), most), -1, dtype=torch.int32)
    share = torch.zeros((len(active), most))
    windows = like.new_zeros((len(active), most, like.shape[0]))
    for row, own in enumerate(active):
        place = 0
        for shift, window in own:
            end = place + len(shift.columns)
            columns[row, place:end] = torch.tensor(shift.columns, dtype=torch.int32)
            share[row, place:end] = float(shift.share[steps[row]])
            windows[row, place:end] = window
            place = end
    return MassShift(columns.to(device), share.to(device), windows)
