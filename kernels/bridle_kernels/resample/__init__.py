"""Changes of resolution."""

from bridle_kernels.resample.reference import average_pool, resize_mask, resize_weights, spatial_mean, upsample

__all__ = ["average_pool", "resize_mask", "resize_weights", "spatial_mean", "upsample"]
