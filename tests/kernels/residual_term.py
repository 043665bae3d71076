"""A term of a residual add, as plain as the protocol is."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Term:
    """See `bridle_kernels.residual_add.ResidualTerm`."""

    values: Tensor
    scale: Tensor
    rows: tuple[int, ...] | None = None
    mask: Tensor | None = None
