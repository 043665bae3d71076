"""The mass shift of one segment: factors of the map are scaled, and an update of low rank is added to the product.

    A' X = A (diag(1 - sum of shares) X) + window^T diag(share * mass) X[columns]

for every X that the edited map A' multiplies.
"""

from dataclasses import dataclass

from torch import Tensor

from bridle_kernels.attention.factor import Factor
from bridle_kernels.attention.operands import Operands, accumulator, pick, within
from bridle_kernels.attention.row_groups import RowGroup
from bridle_kernels.attention.segment import MassShift


@dataclass(frozen=True, slots=True)
class Shift:
    """A `MassShift` for one row. columns: [1, S] int64. named: [1, S], whether there is such a key. share: [1, S], 0 where
    there is none. window: [1, S, N]. keep: [1, L], what stays in each column."""

    columns: Tensor
    named: Tensor
    share: Tensor
    window: Tensor
    keep: Tensor

    def scaled(self, factor: Factor) -> Tensor:
        """diag(1 - sum of shares) X."""
        return factor.values * self.keep[:, None, :, None]

    def update(self, masses: Tensor, factor: Factor) -> Tensor:
        """window^T diag(share * mass) X[columns]: [c, H or 1, N, C]. masses: [1, H, S]."""
        moved = factor.of_heads(self.share[:, None] * masses)
        count, heads, _, width = factor.values.shape
        index = self.columns[:, None, :, None].expand(count, heads, -1, width)
        return self.window.transpose(1, 2)[:, None] @ (moved[..., None] * factor.values.gather(2, index))

    def masses(self, sums: Tensor) -> Tensor:
        """[1, H, S] of the sums of all columns [1, H, L], 0 where there is no such key."""
        index = self.columns[:, None].expand(-1, sums.shape[1], -1)
        return sums.gather(2, index).masked_fill(~self.named[:, None], 0.0)


def resolve_shift(mass: MassShift, operands: Operands, row: RowGroup, keys: int) -> Shift:
    """A segment's shift for the keys that one row reads. keys: of the segment."""
    dtype = accumulator(operands.q.dtype)
    columns = within(pick(mass.columns, row), operands.keys, keys)
    named, columns = columns >= 0, columns.clamp(min=0)
    share = pick(mass.share, row).to(dtype) if isinstance(mass.share, Tensor) else mass.share
    share = named.to(dtype) * share
    window = pick(mass.window, row).to(dtype).expand(-1, columns.shape[1], -1)
    keep = 1.0 - share.new_zeros(1, operands.k.shape[2]).scatter_add(1, columns, share)
    return Shift(columns, named, share, window, keep)
