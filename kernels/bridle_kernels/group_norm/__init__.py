"""Group normalisation with its epilogue."""

from bridle_kernels.group_norm.reference import group_norm

__all__ = ["group_norm"]
