"""The packed matrices of one network while it is recorded: from the cache on disk, or packed and kept there."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from blake3 import blake3
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.packed_cache import MappedMatrices, PackedCache
from bridle_kernels.stored_weights import WeightSource

Pack = Callable[[Sequence[Tensor]], "_core.PackedWeights"]
"""Packs the values of weights."""


class PackedNetwork:
    """sources: of the weights, by the id of what stands for them in the network. threads: that compute digests. name: of
    the network among those with the same weights.

    What is stored is named by everything that its bytes depend on: the values of the weights, their shapes, the spans,
    and how this CPU's variant reads them.
    """

    def __init__(
        self,
        sources: Mapping[int, WeightSource],
        weights: Sequence[Tensor],
        cache: PackedCache | None,
        threads: int,
        name: str,
    ) -> None:
        self._sources = sources
        self._weights = weights
        self._cache = cache if _bytes(weights) >= (0 if cache is None else cache.smallest) else None
        self._threads = threads
        self._network = name
        self._new: dict[str, _core.PackedWeights] = {}

    def matrix(
        self, weights: Sequence[Tensor], widths: Sequence[int], gated: bool, form: Sequence[object], pack: Pack
    ) -> "tuple[_core.PackedWeights, MappedMatrices | None]":
        """The packed matrix of some of the weights, and the file that it is mapped from, if it is.

        form: what `pack` makes of their values, as plain data.
        """
        if self._cache is None:
            return self._packed(weights, pack), None
        name = self._name(weights, widths, gated, form)
        if name in self._kept:
            rows, dtype = sum(weight.shape[0] for weight in weights), _dtype(weights)
            return _core.PackedWeights.packed_before(self._kept[name], rows, widths, dtype, gated=gated), self._kept
        self._new[name] = self._packed(weights, pack)
        return self._new[name], None

    def _packed(self, weights: Sequence[Tensor], pack: Pack) -> "_core.PackedWeights":
        return pack([self._sources[id(weight)].read() for weight in weights])

    def save(self) -> None:
        """Gives to the cache what it did not have."""
        if self._cache is not None and self._new:
            new = {name: packed.memory.data for name, packed in self._new.items()}
            self._cache.save(self._key, {**self._kept, **new})

    @cached_property
    def _kept(self) -> MappedMatrices:
        return MappedMatrices() if self._cache is None else self._cache.load(self._key)

    @cached_property
    def _key(self) -> str:
        """Of the file: which network, all weights and the layout."""
        shapes = [[self._digests[id(weight)], list(weight.shape)] for weight in self._weights]
        return blake3(
            json.dumps([self._network, _core.weight_layout(_dtype(self._weights)), shapes]).encode()
        ).hexdigest()

    @cached_property
    def _digests(self) -> Mapping[int, str]:
        with ThreadPoolExecutor(self._threads) as pool:
            digests = pool.map(lambda source: source.digest().hex(), self._sources.values())
            return dict(zip(self._sources, digests, strict=True))

    def _name(self, weights: Sequence[Tensor], widths: Sequence[int], gated: bool, form: Sequence[object]) -> str:
        parts = [[self._digests[id(weight)], list(weight.shape)] for weight in weights]
        return blake3(json.dumps([parts, list(widths), gated, *form]).encode()).hexdigest()


def _bytes(weights: Sequence[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)


def _dtype(weights: Sequence[Tensor]) -> str:
    return str(weights[0].dtype).removeprefix("torch.")
