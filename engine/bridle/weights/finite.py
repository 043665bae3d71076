"""The search for NaN, infinite and too large weights. Reads the file in small pieces: nothing of it stays in memory."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_PIECE = 1 << 20
"""Bytes read at a time; a multiple of every element size, small enough for a processor's cache."""

_MAGNITUDES: Mapping[torch.dtype, np.unsignedinteger] = {
    torch.float64: np.uint64(0x7FFFFFFFFFFFFFFF),
    torch.float32: np.uint32(0x7FFFFFFF),
    torch.float16: np.uint16(0x7FFF),
    torch.bfloat16: np.uint16(0x7FFF),
}
"""All bits but the sign. As integers, magnitudes have the order of the values, with infinity and then NaN at the end."""

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def first_too_large(path: Path, spans: Mapping[str, tuple[int, int, torch.dtype, torch.dtype]]) -> str | None:
    """The first tensor of the file with a value that is not finite in the type that is wanted of it, or None.

    spans: first byte, byte behind the last, stored and wanted float type of each tensor. Raises OSError, and ValueError
    for a file that has become shorter.
    """
    piece, scratch = bytearray(_PIECE), bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        for key, (begin, end, stored, wanted) in sorted(spans.items(), key=lambda item: item[1][0]):
            magnitude, limit = _MAGNITUDES[stored], _first_infinite(stored, wanted)
            bits, masked = (np.frombuffer(buffer, dtype=magnitude.dtype) for buffer in (piece, scratch))
            file.seek(begin)
            for left in range(end - begin, 0, -_PIECE):
                part = memoryview(piece)[: min(left, _PIECE)]
                if file.readinto(part) != len(part):
                    raise ValueError("the file has become shorter")
                count = len(part) // magnitude.itemsize
                if np.bitwise_and(bits[:count], magnitude, out=masked[:count]).max() >= limit:
                    return key
    return None


@cache
def _first_infinite(stored: torch.dtype, wanted: torch.dtype) -> int:
    """The least magnitude of a stored type that the wanted one rounds to infinity: found by bisection."""
    low, high = 0, _bits(torch.tensor(torch.inf, dtype=stored))
    while low < high:
        middle = (low + high) // 2
        if _value(middle, stored).to(wanted).isinf():
            high = middle
        else:
            low = middle + 1
    return low


def _bits(value: Tensor) -> int:
    return int(value.view(_INTEGERS[value.element_size()]))


def _value(bits: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor(bits, dtype=_INTEGERS[dtype.itemsize]).view(dtype)
