"""What the map of one row is multiplied with."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factor:
    """values [c, H or 1, L, C]: the values of the attention, or unit vectors that select columns of the map c times over.

    mean_heads: the mean of the heads' maps is used.
    """

    values: Tensor
    mean_heads: bool = False

    def of_heads(self, tensor: Tensor) -> Tensor:
        """The used heads of a tensor [1, H, ...]."""
        return tensor.mean(1, keepdim=True) if self.mean_heads else tensor
