"""Segments as flat lists, which is all that a `torch.library` operator takes, and back.

`tensors` holds every tensor that is read, in order. `layout` says what they are: counts, and 1 or 0 for each optional
tensor. `scalars` holds the weight and the share of each segment, 0 where that is a tensor. Buffers and the scales of
captures stay behind: the operator is functional.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bridle_kernels.attention.operands import accumulator
from bridle_kernels.attention.segment import Capture, MassShift, Piece, Segment

_OPTIONAL = ("k_rows", "v_rows", "q_rows", "bias", "v_mix")


@dataclass
class Flat:
    """Segments that are being written."""

    tensors: list[Tensor] = field(default_factory=list)
    layout: list[int] = field(default_factory=list)
    scalars: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "Flat":
        """All segments."""
        flat = cls()
        for segment in segments:
            flat._segment(segment)
        return flat

    def _segment(self, segment: Segment) -> None:
        self.layout.append(len(segment.pieces))
        for piece in segment.pieces:
            self.tensors += [piece.k, piece.v]
            self._optional(piece.length)
        self._number(segment.weight)
        for name in _OPTIONAL:
            self._optional(getattr(segment, name))
        self.layout += [int(segment.lse is not None), int(segment.mass is not None), len(segment.captures)]
        if segment.mass is not None:
            self.tensors += [segment.mass.columns, segment.mass.window]
            self._number(segment.mass.share)
        for capture in segment.captures:
            self.layout.append(int(capture.out.ndim == 4))
            self._optional(capture.columns)
            self._optional(capture.rows)

    def _optional(self, tensor: Tensor | None) -> None:
        self.layout.append(int(tensor is not None))
        self.tensors += [] if tensor is None else [tensor]

    def _number(self, value: float | Tensor) -> None:
        self._optional(value if isinstance(value, Tensor) else None)
        self.scalars.append(0.0 if isinstance(value, Tensor) else float(value))


class Reader:
    """Segments that are being read again, with fresh buffers for everything that they report. q: [R, N, H, d]."""

    def __init__(self, q: Tensor, tensors: Sequence[Tensor], layout: Sequence[int], scalars: Sequence[float]) -> None:
        self._q = q
        self._tensors, self._layout, self._scalars = iter(tensors), iter(layout), iter(scalars)

    def segments(self) -> list[Segment]:
        """All segments."""
        return [self._segment(pieces) for pieces in self._layout]

    def _segment(self, count: int) -> Segment:
        pieces = tuple(self._piece() for _ in range(count))
        weight = self._number()
        optional = {name: self._optional() for name in _OPTIONAL}
        has_lse, has_mass, captures = next(self._layout), next(self._layout), next(self._layout)
        rows, queries, heads, _ = self._q.shape
        return Segment(
            pieces,
            weight,
            **optional,
            lse=self._buffer(rows, heads, queries) if has_lse else None,
            mass=self._mass() if has_mass else None,
            capture=tuple(self._capture(pieces) for _ in range(captures)),
        )

    def _piece(self) -> Piece:
        return Piece(next(self._tensors), next(self._tensors), self._optional())

    def _mass(self) -> MassShift:
        columns, window, share = next(self._tensors), next(self._tensors), self._number()
        return MassShift(columns, share, window, self._buffer(self._q.shape[0], self._q.shape[2], columns.shape[1]))

    def _capture(self, pieces: tuple[Piece, ...]) -> Capture:
        per_head = next(self._layout)
        columns, rows = self._optional(), self._optional()
        count = self._q.shape[0] if rows is None else rows.shape[0]
        width = sum(piece.v.shape[1] for piece in pieces) if columns is None else columns.shape[1]
        heads = [self._q.shape[2]] if per_head else []
        return Capture(columns, self._buffer(count, *heads, self._q.shape[1], width), rows)

    def _optional(self) -> Tensor | None:
        return next(self._tensors) if next(self._layout) else None

    def _number(self) -> float | Tensor:
        tensor, number = self._optional(), next(self._scalars)
        return number if tensor is None else tensor

    def _buffer(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=accumulator(self._q.dtype), device=self._q.device)


def reports(segments: Sequence[Segment]) -> Iterator[Tensor]:
    """The buffers of segments from a `Reader`, in a fixed order."""
    for segment in segments:
        if segment.mass is not None and segment.mass.out is not None:
            yield segment.mass.out
        if segment.lse is not None:
            yield segment.lse
        for capture in segment.captures:
            yield capture.out
