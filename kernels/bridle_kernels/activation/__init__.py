"""Elementwise functions."""

from bridle_kernels.activation.reference import Activation, activation, scale_shift

__all__ = ["Activation", "activation", "scale_shift"]
