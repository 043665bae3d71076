"""Products of one segment's shifted map with factors. The map exists for a few queries at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle_kernels.attention.factor import Factor
from bridle_kernels.attention.mass_shift import Shift
from bridle_kernels.attention.operands import Operands
from bridle_kernels.attention.softmax_map import map_slices


@dataclass(frozen=True, slots=True)
class Products:
    """products: per factor, [c, H or 1, N, C], of one row's map after the shift. masses: [1, H, S] of the shifted columns
    before it. lse: [1, H, N] or None."""

    products: list[Tensor]
    masses: Tensor
    lse: Tensor | None


def multiply(operands: Operands, scale: float, factors: Sequence[Factor], shift: Shift, wants_lse: bool) -> Products:
    """The map of `operands` (one row), shifted, times each factor."""
    scaled = [shift.scaled(factor) for factor in factors]
    slices: list[list[Tensor]] = []
    sums, lse = [], []
    for part in map_slices(operands, scale):
        slices.append([f.of_heads(part.probabilities) @ v for f, v in zip(factors, scaled, strict=True)])
        sums.append(part.probabilities.sum(2))
        if wants_lse:
            lse.append(part.log_sum_exp())
    masses = shift.masses(torch.stack(sums).sum(0))
    products = [
        torch.cat(parts, 2) + shift.update(masses, factor)
        for parts, factor in zip(zip(*slices, strict=True), factors, strict=True)
    ]
    return Products(products, masses, torch.cat(lse, 2) if wants_lse else None)
