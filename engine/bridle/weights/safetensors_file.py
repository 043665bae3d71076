"""Weight files: safetensors only, header checked before the library opens them, memory-mapped.

A mapped file must not be overwritten while a model uses it; replacing it by a new one under its name is safe.
"""

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from bridle.errors import ModelLoadError
from bridle.weights.finite import first_too_large
from bridle.weights.stored_bytes import StoredBytes, file_numbers, remember_place, source
from bridle_kernels.stored_weights import StoredWeights

MAX_HEADER = 16 * 1024 * 1024
MAX_TENSORS = 100_000
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES = {**_FLOATS, **_INTEGERS, "BOOL": torch.bool}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What the header says of a tensor. kind: as safetensors names types. begin, end: bytes of the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path, name: str) -> dict[str, StoredTensor]:
    """Every tensor's place in the file. Raises ModelLoadError naming the file, and the tensor where one is at fault."""
    if not path.is_file():
        raise ModelLoadError(name, "is missing or not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise ModelLoadError(name, f"is too short for a safetensors file: {size} bytes")
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise ModelLoadError(name, "is a pickle or zip archive, not safetensors; convert it first")
        length = int.from_bytes(start, "little")
        if length > min(MAX_HEADER, size - 8) or length < 2:
            raise ModelLoadError(name, f"header of {length} bytes in a file of {size}")
        header = _parse(file.read(length), name)
    return _check_layout(header, 8 + length, size, name)


def read_metadata(path: Path) -> Mapping[str, str]:
    """The free-form metadata of a file that `read_header` has accepted."""
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {})


def read_tensors(
    path: Path, name: str, dtype: torch.dtype | None, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every tensor, float tensors converted to `dtype` (None = as stored).

    A tensor that keeps its type and stays on the CPU is a view of the mapped file: its pages are read when they are
    used. Raises ModelLoadError.
    """
    for key, tensor in read_stored(path, name, dtype):
        yield key, tensor.to(device=device, dtype=dtype) if tensor.is_floating_point() else tensor


def read_stored(path: Path, name: str, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every tensor as stored, views of the mapped file whose places are known to `stored_bytes`.

    dtype: the type that they will be converted to. Raises ModelLoadError, also for values that it cannot hold.
    """
    header = read_header(path, name)
    _refuse_too_large(path, name, header, dtype)
    try:
        with safe_open(str(path), framework="pt"), path.open("rb") as file:
            file_is = file_numbers(os.fstat(file.fileno()))
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, SafetensorError) as problem:
        raise ModelLoadError(name, "is not a valid safetensors file") from problem
    for key, stored in header.items():
        if stored.end > len(pages):
            raise ModelLoadError(name, "changed while it was being read")
        tensor = _view(pages, stored)
        remember_place(tensor, StoredBytes(path, file_is, stored.begin, stored.end))
        yield key, tensor


def _view(pages: mmap.mmap, stored: StoredTensor) -> torch.Tensor:
    """A tensor in the mapping, none of which is read: `safe_open` reads the first page of each, and its neighbours."""
    dtype = _DTYPES[stored.kind]
    if stored.begin == stored.end:
        return torch.empty(stored.shape, dtype=dtype)
    if stored.begin % dtype.itemsize:
        return torch.frombuffer(bytearray(pages[stored.begin : stored.end]), dtype=dtype).view(stored.shape)
    count = (stored.end - stored.begin) // dtype.itemsize
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=stored.begin).view(stored.shape)


def in_dtype(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None, device: torch.device
) -> Mapping[str, torch.Tensor]:
    """Tensors of `read_stored` on a device: on the CPU they stay as they are stored until somebody uses them."""
    if device.type == "cpu":
        return StoredWeights(tensors, dtype, source)
    return {key: tensor.to(device=device, dtype=dtype) for key, tensor in tensors.items()}


def _refuse_too_large(path: Path, name: str, header: Mapping[str, StoredTensor], dtype: torch.dtype | None) -> None:
    floats = {key: (t.begin, t.end, _FLOATS[t.kind]) for key, t in header.items() if t.kind in _FLOATS}
    try:
        key = first_too_large(path, {key: (*span, dtype or span[2]) for key, span in floats.items()})
        finite = key is not None and first_too_large(path, {key: (*floats[key], floats[key][2])}) is None
    except (OSError, ValueError) as problem:
        raise ModelLoadError(name, "changed while it was being read") from problem
    if finite:
        raise ModelLoadError(name, f"has values that {str(dtype).removeprefix('torch.')} cannot hold", key)
    if key is not None:
        raise ModelLoadError(name, "has NaN or infinite values", key)


def _parse(raw: bytes, name: str) -> Mapping[str, object]:
    try:
        if not raw.startswith(b"{"):
            raise ValueError
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        raise ModelLoadError(name, "header is not valid JSON") from problem
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ModelLoadError(name, f"has {len(header)} tensors, at most {MAX_TENSORS}")
    return dict(header)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _check_layout(header: Mapping[str, object], start: int, size: int, name: str) -> dict[str, StoredTensor]:
    """Offsets tile the file from byte `start` to `size` exactly and agree with the shapes."""
    body, spans, tensors = size - start, [], {}
    for key, entry in header.items():
        kind, shape, begin, end = _entry(entry, name, key)
        if end - begin != prod(shape) * _BYTES[kind] or not 0 <= begin <= end <= body:
            raise ModelLoadError(name, f"bytes {begin} to {end} do not hold {kind} {list(shape)}", key)
        spans.append((begin, end))
        tensors[key] = StoredTensor(kind, shape, start + begin, start + end)
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise ModelLoadError(name, f"tensors overlap or leave a hole at byte {place}")
        place = end
    if place != body:
        raise ModelLoadError(name, f"is truncated or has trailing bytes: {body} bytes of data, tensors take {place}")
    return tensors


def _entry(entry: object, name: str, key: str) -> tuple[str, tuple[int, ...], int, int]:
    if isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"} and str(entry["dtype"]) in _BYTES:
        shape, offsets = entry["shape"], entry["data_offsets"]
        if (
            isinstance(entry["dtype"], str)
            and _integers(shape)
            and _integers(offsets)
            and len(offsets) == 2
            and len(shape) <= 8
        ):
            return entry["dtype"], tuple(shape), offsets[0], offsets[1]
    raise ModelLoadError(name, "header entry is malformed or of an unsupported type", key)


def _integers(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)
