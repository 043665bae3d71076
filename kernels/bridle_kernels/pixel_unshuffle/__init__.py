"""Space to depth."""

from bridle_kernels.pixel_unshuffle.reference import pixel_unshuffle

__all__ = ["pixel_unshuffle"]
