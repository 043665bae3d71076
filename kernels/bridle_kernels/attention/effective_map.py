"""Products of one segment's map with factors. The map exists for a few queries at a time."""

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
    """products: per factor, [r', H or 1, N, C], of the map after the shift. column_mass: [r, H, L], sums over the queries
    before it. lse: [r, H, N]."""

    products: list[Tensor]
    column_mass: Tensor
    lse: Tensor


def multiply(operands: Operands, scale: float, factors: Sequence[Factor], shift: Shift | None) -> Products:
    """The map of `operands`, shifted, times each factor."""
    values = [factor.values if shift is None else shift.scaled(factor) for factor in factors]
    slices: list[list[Tensor]] = []
    masses, lse = [], []
    for part in map_slices(operands, scale):
        slices.append([f.of_heads(part.probabilities) @ v for f, v in zip(factors, values, strict=True)])
        masses.append(part.probabilities.sum(2))
        lse.append(part.log_sum_exp())
    column_mass = torch.stack(masses).sum(0)
    products = [torch.cat(parts, 2) for parts in zip(*slices, strict=True)]
    if shift is not None:
        products = [p + shift.update(column_mass, f) for p, f in zip(products, factors, strict=True)]
    return Products(products, column_mass, torch.cat(lse, 2))
