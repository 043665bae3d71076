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
    """A `MassShift` for r rows. columns: [r, S] int64. named: [r, S], whether there is such a key. share: [r, S], 0 where
    there is none. window: [r or 1, S, N]. keep: [r, L], what stays in each column."""

    columns: Tensor
    named: Tensor
    share: Tensor
    window: Tensor
    keep: Tensor

    def scaled(self, factor: Factor) -> Tensor:
        """diag(1 - sum of shares) X."""
        return factor.values * factor.of_rows(self.keep)[:, None, :, None]

    def update(self, masses: Tensor, factor: Factor) -> Tensor:
        """window^T diag(share * mass) X[columns]: [r', H or 1, N, C]. masses: [r, H, S]."""
        moved = factor.of_heads(self.share[:, None] * masses)
        index = factor.of_rows(self.columns)[:, None, :, None]
        rows, (_, heads, _, width) = moved.shape[0], factor.values.shape
        chosen = factor.values.expand(rows, -1, -1, -1).gather(2, index.expand(rows, heads, -1, width))
        return factor.of_rows(self.window).transpose(1, 2)[:, None] @ (moved[..., None] * chosen)

    def masses(self, sums: Tensor) -> Tensor:
        """[r, H, S] of the sums of all columns [r, H, L], 0 where there is no such key."""
        index = self.columns[:, None].expand(-1, sums.shape[1], -1)
        return sums.gather(2, index).masked_fill(~self.named[:, None], 0.0)


def resolve_shift(mass: MassShift, operands: Operands, group: RowGroup, keys: int) -> Shift:
    """A segment's shift for the rows and keys that a group reads. keys: of the segment."""
    rows, dtype = len(group.rows), accumulator(operands.q.dtype)
    columns = within(pick(mass.columns, group), operands.keys, keys).expand(rows, -1)
    named, columns = columns >= 0, columns.clamp(min=0)
    share = pick(mass.share, group).to(dtype) if isinstance(mass.share, Tensor) else mass.share
    share = named.to(dtype) * share
    window = pick(mass.window, group).to(dtype).expand(-1, columns.shape[1], -1)
    keep = 1.0 - share.new_zeros(rows, operands.k.shape[2]).scatter_add(1, columns, share)
    return Shift(columns, named, share, window, keep)
