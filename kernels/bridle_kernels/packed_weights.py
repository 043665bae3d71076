"""Weights as the C++ core reads them: packed at their first use, kept as long as the weights themselves."""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from bridle_kernels import _core


class PackedWeights:
    """Packed matrices and float32 vectors of tensors that live somewhere else.

    pool: packs; None is the thread that asks.
    """

    def __init__(self, pool: "_core.ThreadPool | None" = None) -> None:
        self._pool = pool
        self._packed: dict[tuple[object, ...], _core.PackedWeights] = {}
        self._floats: dict[tuple[int, ...], Tensor] = {}

    def __len__(self) -> int:
        """How many matrices are packed."""
        return len(self._packed)

    def matrix(self, weights: Sequence[Tensor], widths: Sequence[int], gated: bool = False) -> "_core.PackedWeights":
        """The packed product with weights [N, K] or of convolutions [N, C, kh, kw], their rows one after another."""
        key = (gated, *map(id, weights), *widths)
        found = self._packed.get(key)
        if found is None:
            dtype = str(weights[0].dtype).removeprefix("torch.")
            rows = [_rows(weight) for weight in weights]
            found = self._packed[key] = _core.PackedWeights(rows, widths, dtype, gated=gated, pool=self._pool)
            for weight in weights:
                weakref.finalize(weight, self._packed.pop, key, None)
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


def _rows(weight: Tensor) -> Tensor:
    """[N, K], or [N, taps, C] of a convolution."""
    return weight if weight.ndim == 2 else weight.flatten(2).transpose(1, 2)
