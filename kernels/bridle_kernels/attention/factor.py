"""What a map is multiplied with."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factor:
    """values [r' or 1, H or 1, L, C]: the values of the attention, or unit vectors that select columns of the map.

    rows: [r'], the rows of the map that are used; None for all. mean_heads: the mean of the heads' maps is used.
    """

    values: Tensor
    rows: Tensor | None = None
    mean_heads: bool = False

    def of_rows(self, tensor: Tensor) -> Tensor:
        """The used rows of a tensor [r or 1, ...]."""
        return tensor if self.rows is None or tensor.shape[0] == 1 else tensor.index_select(0, self.rows)

    def of_heads(self, tensor: Tensor) -> Tensor:
        """The used rows and heads of a tensor [r, H, ...]."""
        tensor = tensor if self.rows is None else tensor.index_select(0, self.rows)
        return tensor.mean(1, keepdim=True) if self.mean_heads else tensor
