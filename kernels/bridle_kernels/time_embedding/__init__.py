"""Sinusoidal embedding of time steps."""

from bridle_kernels.time_embedding.reference import time_embedding

__all__ = ["time_embedding"]
