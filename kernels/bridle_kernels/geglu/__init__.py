"""The gated linear layer of transformer feed-forwards."""

from bridle_kernels.geglu.reference import geglu

__all__ = ["geglu"]
