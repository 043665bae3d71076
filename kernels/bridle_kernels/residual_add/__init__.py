"""Addition of scaled, masked residuals to rows of a batch."""

from bridle_kernels.residual_add.reference import ResidualTerm, residual_add

__all__ = ["ResidualTerm", "residual_add"]
