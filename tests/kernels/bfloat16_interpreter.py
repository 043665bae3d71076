"""bfloat16 in Triton's interpreter as GPUs have it.

The interpreter of Triton 3.9 keeps bfloat16 as 16-bit integers, multiplies matrices of these integers, and cuts off where
a GPU rounds to nearest. Here products are exact and float32 is rounded to nearest, ties to even.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Replaces the two operations in this process."""
    builder: Any = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (interpreter.TensorHandle(widened(x.data), tl.float32) for x in (a, b))
        return dot(self, a, b, d, *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return interpreter.TensorHandle(rounded(source.data), tl.bfloat16)
        return cast(self, source, target)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """bfloat16 bits of float32, to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest)
