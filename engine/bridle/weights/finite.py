"""The search for NaN and infinite weights. Reads the file in small pieces: nothing of it stays in memory."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_PIECE = 1 << 20
"""Bytes read at a time; a multiple of every element size, small enough for a processor's cache."""

_EXPONENTS: Mapping[torch.dtype, np.unsignedinteger] = {
    torch.float64: np.uint64(0x7FF0000000000000),
    torch.float32: np.uint32(0x7F800000),
    torch.float16: np.uint16(0x7C00),
    torch.bfloat16: np.uint16(0x7F80),
}
"""The exponent's bits of each float type. All of them are set in NaN and infinity, and in nothing else."""


def first_non_finite(path: Path, spans: Mapping[str, tuple[int, int, torch.dtype]]) -> str | None:
    """The first tensor of the file that holds a NaN or an infinity, or None.

    spans: first byte, byte behind the last, and float type of each tensor. Raises OSError, and ValueError for a file that
    has become shorter.
    """
    piece, scratch = bytearray(_PIECE), bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        for key, (begin, end, dtype) in sorted(spans.items(), key=lambda item: item[1][0]):
            exponent = _EXPONENTS[dtype]
            bits, masked = (np.frombuffer(buffer, dtype=exponent.dtype) for buffer in (piece, scratch))
            file.seek(begin)
            for left in range(end - begin, 0, -_PIECE):
                part = memoryview(piece)[: min(left, _PIECE)]
                if file.readinto(part) != len(part):
                    raise ValueError("the file has become shorter")
                count = len(part) // exponent.itemsize
                if np.bitwise_and(bits[:count], exponent, out=masked[:count]).max() == exponent:
                    return key
    return None


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite. Unlike `torch.isfinite` it makes no tensor of the same size."""
    return values.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(values))
