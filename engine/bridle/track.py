"""One image while it is denoised, and what is remembered of it."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bridle.lowering import RowPlan
from bridle.noise import NoiseSource
from bridle.solvers import SolverTable


@dataclass(frozen=True, slots=True)
class KnownRegion:
    """Inpainting with a plain U-Net: clean latents and noise [C, h, w] outside the mask [1, h, w] (1 = repaint)."""

    clean: Tensor
    noise: Tensor
    mask: Tensor


@dataclass(slots=True)
class MapRecord:
    """P8: columns of a row's text map, summed over sites and steps.

    row: of the track. columns: distinct text columns. levels: per cross-attention its resolution level, or None where it
    takes no part. sizes: (h, w) of each level. active: [S], the steps. sums: per level, [columns, N] float32, mean over heads.
    """

    row: int
    columns: tuple[int, ...]
    levels: tuple[int | None, ...]
    sizes: tuple[tuple[int, int], ...]
    active: NDArray[np.bool_]
    sums: dict[int, Tensor] = field(default_factory=dict)

    def add(self, level: int, values: Tensor) -> None:
        """A sum over sites of a level, [columns, N]. `values` may become the record's own."""
        self.sums[level] = self.sums[level].add_(values) if level in self.sums else values


class Blend(Protocol):
    """P12: what happens to a track's latents after a step, given those of its source, [C, h, w] each."""

    def __call__(self, step: int, latents: Tensor, source: Tensor) -> Tensor: ...


@dataclass(slots=True)
class Track:
    """One image while it is denoised. latents: [C, h, w] float32.

    source: the track whose rows this one's rows read; both go through the same schedule. records: maps to remember. blend:
    applied after each step. shown: False for a source that nobody asked to see step by step.
    """

    request_index: int
    image_index: int
    rows: tuple[RowPlan, ...]
    table: SolverTable
    latents: Tensor
    noise: NoiseSource
    known: KnownRegion | None = None
    source: "Track | None" = None
    blend: Blend | None = None
    records: tuple[MapRecord, ...] = ()
    shown: bool = True
    step: int = 0
    cancelled: bool = False
    error: Exception | None = None

    @property
    def finished(self) -> bool:
        """No step is left, or none will be run."""
        return self.error is not None or self.step >= len(self.table)

    @property
    def row_size(self) -> tuple[int, int]:
        """(height, width) of the latents that its rows see."""
        window = self.rows[0].window
        return (self.latents.shape[-2], self.latents.shape[-1]) if window is None else (window.height, window.width)
