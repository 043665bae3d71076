"""The external data of ONNX graphs: every tensor of a folder once, written one at a time."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

NAME = "model.onnx_data"
ALIGNMENT = 4096
"""Bytes; tensors begin at multiples of a page, so that they can be memory-mapped."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies: bytes from the start of the file."""

    offset: int
    length: int


class WeightsFile:
    """`model.onnx_data` of a folder. Graphs of one folder that name the same tensor share it."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / NAME, "wb")  # noqa: SIM115
        self._stored: dict[str, Stored] = {}
        self._computed = 0

    def add(self, name: str, tensor: Tensor) -> Stored:
        """Appends a tensor unless a tensor of that name is there. At most one converted copy is alive."""
        if name not in self._stored:
            start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(start)
            self._file.flush()
            tensor.detach().cpu().contiguous().numpy().tofile(self._file)
            self._stored[name] = Stored(start, tensor.numel() * tensor.element_size())
        return self._stored[name]

    def fresh_name(self) -> str:
        """A name for a tensor that no file names."""
        self._computed += 1
        return f"computed.{self._computed}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
