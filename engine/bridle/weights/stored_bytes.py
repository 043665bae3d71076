"""Where in a file the values of a mapped tensor are: they can be read there without staying in memory as its pages would."""

import mmap
import os
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bridle_kernels.stored_weights import WeightSource, in_memory

_PIECE = 1 << 20
_places = WeakTensorKeyDictionary()


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes `begin` to `end` of a file, which is recognised by its numbers: one that took its name is another."""

    path: Path
    file: tuple[int, int, int, int]
    begin: int
    end: int


def file_numbers(status: os.stat_result) -> tuple[int, int, int, int]:
    """What changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def remember_place(tensor: Tensor, place: StoredBytes) -> None:
    """Says where the values of a tensor are, as long as it lives."""
    _places[tensor] = place


def source(tensor: Tensor) -> WeightSource:
    """The place in the file, or the tensor itself where it has none or the file is another now."""
    if tensor not in _places:
        return in_memory(tensor)
    place: StoredBytes = _places[tensor]
    if place.begin == place.end or place.begin % tensor.element_size():
        return in_memory(tensor)
    return WeightSource(lambda: _read(tensor, place), lambda: _digest(tensor, place))


def _read(tensor: Tensor, place: StoredBytes) -> Tensor:
    first = place.begin - place.begin % mmap.ALLOCATIONGRANULARITY
    file = _opened(place)
    if file is None:
        return tensor
    with file:
        pages = mmap.mmap(file.fileno(), place.end - first, access=mmap.ACCESS_COPY, offset=first)
    return torch.frombuffer(pages, dtype=tensor.dtype, offset=place.begin - first).view(tensor.shape)


def _digest(tensor: Tensor, place: StoredBytes) -> bytes:
    found, piece = blake3(str(tensor.dtype).encode()), bytearray(_PIECE)
    file = _opened(place)
    if file is None:
        return in_memory(tensor).digest()
    with file:
        file.seek(place.begin)
        for left in range(place.end - place.begin, 0, -_PIECE):
            part = memoryview(piece)[: min(left, _PIECE)]
            if file.readinto(part) != len(part):
                return in_memory(tensor).digest()
            found.update(part)
    return found.digest()


def _opened(place: StoredBytes) -> FileIO | None:
    """The file, or None where another has its name."""
    try:
        file = FileIO(place.path)
    except OSError:
        return None
    if file_numbers(os.fstat(file.fileno())) == place.file:
        return file
    file.close()
    return None
