"""Weights in the type in which they are stored, converted when somebody uses them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from blake3 import blake3
from torch import Tensor


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where the values of a tensor are read from by those who need them once.

    read: as they are stored. digest: of their bytes and type, whatever the shape.
    """

    read: Callable[[], Tensor]
    digest: Callable[[], bytes]


def in_memory(tensor: Tensor) -> WeightSource:
    """A tensor itself."""
    return WeightSource(lambda: tensor, lambda: _digest(tensor))


class StoredWeights(Mapping[str, Tensor]):
    """Float tensors by name, converted at their first use and kept from then on. Threads may share it.

    stored: as they are in a file. dtype: None keeps the stored one. source: see `WeightSource`.
    """

    def __init__(
        self,
        stored: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        source: Callable[[Tensor], WeightSource] = in_memory,
    ) -> None:
        self.stored = stored
        self._dtype = dtype
        self._source = source
        self._converted: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def dtype(self, name: str) -> torch.dtype:
        """That a tensor has once it is converted."""
        return self._dtype or self.stored[name].dtype

    def source(self, name: str) -> WeightSource:
        """Where the values of a tensor are read from without converting and keeping it."""
        return self._source(self.stored[name])

    def __getitem__(self, name: str) -> Tensor:
        """Converted; the same object every time."""
        stored, dtype = self.stored[name], self.dtype(name)
        if stored.dtype == dtype:
            return stored
        with self._lock:
            if name not in self._converted:
                self._converted[name] = self.source(name).read().to(dtype)
            return self._converted[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.stored)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        """Whether there is one of that name; nothing is converted."""
        return name in self.stored


def _digest(tensor: Tensor) -> bytes:
    found = blake3(str(tensor.dtype).encode())
    found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.digest()
