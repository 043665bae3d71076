"""2-D convolution with its epilogue."""

from bridle_kernels.conv2d.reference import conv2d

__all__ = ["conv2d"]
