"""Changes of resolution."""

from bridle_kernels.resample.reference import average_pool, resize_mask, spatial_mean

__all__ = ["average_pool", "resize_mask", "spatial_mean"]
