"""Linear layers with their epilogue."""

from bridle_kernels.linear.reference import linear, project_heads

__all__ = ["linear", "project_heads"]
