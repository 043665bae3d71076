"""Weights as the C++ core reads them: packed at their first use or mapped from the cache on disk, kept as long as the
weights themselves."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bridle_kernels import _core
from bridle_kernels.attention.native import DTYPES
from bridle_kernels.packed_cache import MappedMatrices, PackedCache
from bridle_kernels.packed_network import PackedNetwork
from bridle_kernels.phases import PHASES
from bridle_kernels.spans import span, spanned
from bridle_kernels.stored_weights import StoredWeights, WeightSource

Values = Callable[[Tensor], Tensor]
"""What is packed of a stored weight, in float32 or bfloat16."""


class PackedWeights:
    """Packed matrices and float32 vectors of tensors that live somewhere else. Threads may share it.

    pool: packs; None is the thread that asks. cache: None keeps nothing on disk.
    """

    def __init__(self, pool: "_core.ThreadPool | None" = None, cache: PackedCache | None = None) -> None:
        self._pool = pool
        self._cache = cache
        self._lock = threading.RLock()
        self._packed: dict[tuple[object, ...], _core.PackedWeights] = {}
        self._mapped: weakref.WeakKeyDictionary[_core.PackedWeights, MappedMatrices] = weakref.WeakKeyDictionary()
        self._floats: dict[tuple[int, ...], Tensor] = {}
        self._stand_ins = WeakTensorKeyDictionary()
        self._digests = WeakTensorKeyDictionary()
        self._network: PackedNetwork | None = None
        self._stored: dict[int, tuple[StoredWeights, str]] = {}

    def __len__(self) -> int:
        """How many matrices are packed."""
        return len(self._packed)

    @contextmanager
    def network(self, weights: Mapping[str, Tensor], name: str = "") -> Iterator[Mapping[str, Tensor]]:
        """The weights of a network that is going to be recorded: matrices are on "meta", vectors are themselves.

        What is packed of these is read from where it is stored, or not at all where the cache has it. The cache keeps
        what was new. Networks are recorded one at a time. name: tells networks apart that use parts of the same weights.
        """
        stored = weights if isinstance(weights, StoredWeights) else StoredWeights(weights)
        with self._lock:
            given = {key: self._stand_in(stored, key) for key in stored}
            matrices = {key: weight for key, weight in given.items() if weight.is_meta}
            self._stored = {storage_of(weight): (stored, key) for key, weight in matrices.items()}
            self._network = PackedNetwork(
                {id(weight): self._source(stored, key) for key, weight in matrices.items()},
                list(matrices.values()),
                self._cache,
                1 if self._pool is None else self._pool.threads,
                name,
            )
            try:
                yield given
                self._network.save()
            finally:
                self._network = None
                self._stored = {}

    def values(self, view: Tensor) -> Tensor | None:
        """All values of the matrix that stands behind a view, of the network that is being recorded. None for others."""
        found = self._stored.get(storage_of(view))
        return None if found is None else found[0][found[1]]

    def stored(self, view: Tensor) -> Tensor | None:
        """`values` as they are stored, none of which is read here."""
        found = self._stored.get(storage_of(view))
        return None if found is None else found[0].stored[found[1]]

    def matrix(self, weights: Sequence[Tensor], widths: Sequence[int], gated: bool = False) -> "_core.PackedWeights":
        """The packed product with weights [N, K] or of convolutions [N, C, kh, kw], their rows one after another.

        widths: of what is read for K or, tap by tap, for C. Products read a `span` of each.
        """
        dtype = weights[0].dtype
        return self._kept(weights, widths, gated, (), lambda value: value if value.dtype in DTYPES else value.to(dtype))

    def phases(self, weight: Tensor, channels: Sequence[int]) -> "list[_core.PackedWeights]":
        """The four packed products of a weight [N, C, 3, 3] for an input that is enlarged by two: see `PHASES`.

        channels: of what is read for C.
        """
        return [
            self._kept([weight], list(channels) * 4, False, (phase.line, phase.column), phase.weights)
            for phase in PHASES
        ]

    def rest(self, matrices: "Iterable[_core.PackedWeights]") -> None:
        """Says that matrices are not needed for a while: pages of files that they are mapped from are given back.

        Whole files are, also for other matrices in them. What was packed by this process stays.
        """
        files = {id(file): file for file in map(self._mapped.get, matrices) if file is not None}
        for file in files.values():
            file.give_back()

    def rounds_sums_once(self, weight: Tensor) -> bool:
        """Whether sums of a weight's values are rounded when they are packed, and no value before that.

        So it is in float32, and in bfloat16 where the weight is stored in a wider type: it has to be rounded once anyway.
        """
        stored = self.stored(weight)
        return weight.dtype == torch.float32 or (stored is not None and stored.dtype != weight.dtype)

    def _kept(
        self, weights: Sequence[Tensor], widths: Sequence[int], gated: bool, form: tuple[int, ...], values: Values
    ) -> "_core.PackedWeights":
        """form: names what `values` makes of the stored weights before they are packed."""
        key = (gated, form, *map(id, weights), *widths)
        found = self._packed.get(key)
        if found is not None:
            return found
        with self._lock:
            if key not in self._packed:
                self._packed[key] = self._made(weights, widths, gated, form, values)
                for weight in weights:
                    weakref.finalize(weight, self._packed.pop, key, None)
            return self._packed[key]

    def _made(
        self, weights: Sequence[Tensor], widths: Sequence[int], gated: bool, form: tuple[int, ...], values: Values
    ) -> "_core.PackedWeights":
        def pack(stored: Sequence[Tensor]) -> _core.PackedWeights:
            rows = [_rows(values(value), widths, dtype) for value in stored]
            name = str(dtype).removeprefix("torch.")
            return _core.PackedWeights(rows, spans, name, gated=gated, pool=self._pool)

        dtype = weights[0].dtype
        spans = [span(dtype, width) for width in widths]
        if weights[0].is_meta and self._network is not None:
            packed, file = self._network.matrix(weights, spans, gated, form, pack)
            if file is not None:
                self._mapped[packed] = file
            return packed
        return pack(weights)

    def _source(self, weights: StoredWeights, name: str) -> WeightSource:
        """With a digest that is computed once for all networks."""
        source, stored = weights.source(name), weights.stored[name]

        def digest() -> bytes:
            if stored not in self._digests:
                self._digests[stored] = source.digest()
            found: bytes = self._digests[stored]
            return found

        return replace(source, digest=digest)

    def _stand_in(self, weights: StoredWeights, name: str) -> Tensor:
        """The same for the same tensor, so that it is packed once for all sizes of a network."""
        stored, dtype = weights.stored[name], weights.dtype(name)
        if stored.ndim < 2 or dtype not in DTYPES:
            return weights[name]
        if stored not in self._stand_ins:
            self._stand_ins[stored] = torch.empty_like(stored, dtype=dtype, device="meta")
        found: Tensor = self._stand_ins[stored]
        return found

    def vector(self, *vectors: Tensor) -> Tensor:
        """The vectors joined, in float32."""
        if len(vectors) == 1 and vectors[0].dtype == torch.float32:
            return vectors[0]
        key = tuple(map(id, vectors))
        found = self._floats.get(key)
        if found is None:
            found = self._floats[key] = torch.cat(vectors).float()
            for vector in vectors:
                weakref.finalize(vector, self._floats.pop, key, None)
        return found


def storage_of(tensor: Tensor) -> int:
    """The same number for all views of one memory, and for nothing else while it lives."""
    return int(tensor.untyped_storage()._cdata)


def _rows(weight: Tensor, widths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """[N, K], or [N, taps, C] of a convolution, as wide as their spans in `dtype`."""
    if weight.ndim == 2:
        return spanned(weight, widths, dtype)
    taps = weight[0, 0].numel()
    return spanned(weight.flatten(2).transpose(1, 2), widths[: len(widths) // taps], dtype)
