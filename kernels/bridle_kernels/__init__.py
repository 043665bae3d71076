"""The op surface: each op has a plain PyTorch definition, and native variants where they pay."""

from bridle_kernels._core import active_isa, available_isas

__all__ = ["active_isa", "available_isas"]
