"""Packed weights on disk: one file per network, mapped read-only, so that processes share it and a start packs nothing.

    16 bytes  magic and version of the format
     8        length of the header, little-endian
    32        BLAKE3 of the header
    header    JSON: {name: [offset behind the header, bytes, BLAKE3 of them]}
    matrices  each from a multiple of 64 on

A file is checked to its last byte before anything of it is used. Whatever is wrong with a file or with the disk costs the
cache and one line in the log, never a result.
"""

import json
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

Matrices = Mapping[str, memoryview]
"""The bytes of packed matrices by name."""

SMALLEST = 64 << 20
"""Networks with fewer bytes of weights are packed anew: that takes no time."""

_log = logging.getLogger("bridle")
_MAGIC = b"bridle packed 1\n"
_SUFFIX = ".packed"
_PART = ".part"
_ALIGNMENT = 64
_PREFIX = len(_MAGIC) + 8 + 32
_MAX_HEADER = 16 << 20
_STALE_SECONDS = 24 * 3600


class MappedMatrices(Mapping[str, memoryview]):
    """The matrices of a file, in memory that is mapped from it and cannot be written. Threads may share it.

    Without a mapping there are none. Raises ValueError for a mapping that can be written.
    """

    def __init__(self, mapping: mmap.mmap | None = None, matrices: Matrices | None = None) -> None:
        if mapping is not None and not memoryview(mapping).readonly:
            raise ValueError("mapping can be written: what is in its memory may be nowhere else")
        self._mapping = mapping
        self._matrices: Matrices = matrices or {}

    def give_back(self) -> None:
        """Takes the mapping's pages out of the memory of this process. They come back when they are read.

        Others may be reading: nothing can be written to the mapping, so every page has the file's bytes, and one that is
        taken from under a reader is mapped again, most often from the page cache, where it stays. The same on memory
        that belongs to no file would be a loss of what is in it.
        """
        if self._mapping is not None:
            with suppress(OSError):  # memory that somebody locked stays
                self._mapping.madvise(mmap.MADV_DONTNEED)

    def __getitem__(self, name: str) -> memoryview:
        """The bytes of a matrix."""
        return self._matrices[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._matrices)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._matrices)


class PackedCache:
    """Files in one directory, which is made when it is first written to. Threads and processes may share it.

    limit: bytes of all files together; those that were not used for longest are given up for a new one. smallest: see
    `SMALLEST`. threads: that check a file.
    """

    def __init__(self, directory: Path, limit: int, smallest: int = SMALLEST, threads: int = 1) -> None:
        self.smallest = smallest
        self._directory = directory
        self._limit = limit
        self._threads = threads
        self._writer = ThreadPoolExecutor(1, "bridle-packed-cache")
        self._writes: list[Future[None]] = []

    def load(self, key: str) -> MappedMatrices:
        """The matrices of a file, in mapped memory that lives as long as they; none where there is no sound file."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            found = _checked(memoryview(mapping), self._threads)
            os.utime(path)
        except FileNotFoundError:
            return MappedMatrices()
        except (OSError, ValueError) as problem:
            _log.warning("packed weights are packed anew, %s is of no use: %s", path.name, problem)
            return MappedMatrices()
        return MappedMatrices(mapping, found)

    def save(self, key: str, matrices: Matrices) -> None:
        """Writes a file in the background, in the place of one that may be there. The memory must not change."""
        self._writes = [write for write in self._writes if not write.done()]
        self._writes.append(self._writer.submit(self._save, self._path(key), dict(matrices)))

    def flush(self) -> None:
        """Returns when everything is written."""
        for write in self._writes:
            write.result()

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}{_SUFFIX}"

    def _save(self, path: Path, matrices: Matrices) -> None:
        try:
            size = sum(data.nbytes for data in matrices.values())
            if size > self._limit:
                return
            self._directory.mkdir(parents=True, exist_ok=True)
            self._make_room(size, path)
            _write(path, matrices)
        except OSError as problem:
            _log.warning("packed weights are not kept in %s: %s", self._directory, problem.strerror)

    def _make_room(self, size: int, path: Path) -> None:
        """Gives up the oldest files, and what writers that died have left."""
        for part in self._directory.glob(f"*{_PART}"):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink(missing_ok=True)
        others = [(other.stat(), other) for other in self._directory.glob(f"*{_SUFFIX}") if other != path]
        used = sum(status.st_size for status, _ in others)
        for status, other in sorted(others, key=lambda entry: entry[0].st_mtime_ns):
            if used + size <= self._limit:
                return
            other.unlink(missing_ok=True)
            used -= status.st_size


def _write(path: Path, matrices: Matrices) -> None:
    """Under a name of its own first: a reader sees the whole file or none."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=_PART, delete=False) as file:
        try:
            for piece in _pieces(matrices):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _pieces(matrices: Matrices) -> Iterator[memoryview]:
    """The file's bytes in order. Offsets count from the end of the header."""
    place, entries = 0, {}
    for name, data in matrices.items():
        entries[name] = [place, data.nbytes, blake3(data).hexdigest()]
        place += data.nbytes + -data.nbytes % _ALIGNMENT
    header = json.dumps(entries).encode()
    header += b" " * (-(_PREFIX + len(header)) % _ALIGNMENT)
    yield memoryview(_MAGIC + len(header).to_bytes(8, "little") + blake3(header).digest() + header)
    for data in matrices.values():
        yield data
        yield memoryview(bytes(-data.nbytes % _ALIGNMENT))


def _checked(data: memoryview, threads: int) -> Matrices:
    """What a file holds. Raises ValueError naming what is wrong with it."""
    entries, start = _header(data)
    found, end = {}, start
    for name, (offset, size, _) in entries.items():
        if start + offset != end:
            raise ValueError("its matrices overlap or leave holes")
        found[name] = data[end : end + size]
        end += size + -size % _ALIGNMENT
    if end != len(data):
        raise ValueError(f"it has {len(data)} bytes, wants {end}")
    with ThreadPoolExecutor(threads) as pool:
        for name, digest in zip(found, pool.map(lambda piece: blake3(piece).hexdigest(), found.values()), strict=True):
            if digest != entries[name][2]:
                raise ValueError("its bytes have changed")
    return found


def _header(data: memoryview) -> tuple[dict[str, tuple[int, int, str]], int]:
    """Entries and where the first one begins."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it is no file of packed weights of this version")
    length = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 8], "little")
    header = data[_PREFIX : _PREFIX + length]
    if length > _MAX_HEADER or len(header) < length or blake3(header).digest() != data[_PREFIX - 32 : _PREFIX]:
        raise ValueError("its header is damaged")
    return json.loads(bytes(header)), _PREFIX + length
