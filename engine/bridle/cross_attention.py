"""The cross-attention of a batch of rows in one step: its text, edits of the text's map, and further segments."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.lowering import RowPlan, SegmentPlan, TokenBias, TokenShift
from bridle.map_edits import active_biases, active_shifts, stack_biases, stack_shifts
from bridle.rows import ContextPiece, ContextSegment, SiteTerms
from bridle.segment_stack import stack_context
from bridle.uploads import sent, upload
from bridle_kernels.attention import Capture, MassShift

Made = TypeVar("Made")


class CrossAttention:
    """The segments of `plans`. sources: per row, the batch row whose queries and keys its `mix` reads, or None.

    What depends on a step through strengths alone is made once for each set of strengths.
    """

    def __init__(self, plans: Sequence[RowPlan], sources: Sequence[int | None]) -> None:
        self._plans = tuple(plans)
        self._sources = tuple(sources)
        self._device = plans[0].context.device
        self._text = stack_context([plan.kv for plan in plans])
        self._sites = len(plans[0].kv)
        self._length = max(plan.context.shape[1] for plan in plans)
        slots = range(max(len(plan.segments) for plan in plans))
        self._slots = [[_at(plan.segments, place) for plan in plans] for place in slots]
        self._others = [stack_context([None if s is None else s.kv for s in slot]) for slot in self._slots]
        self._made: dict[Hashable, Any] = {}

    def segments(self, steps: Sequence[int], captures: Sequence[Capture | None] | None) -> tuple[ContextSegment, ...]:
        """The segments of every row's current step. captures: of the text's map, one per site."""
        mixes = self._mixed_rows(steps)
        found = [self._text_segment(steps, captures, mixes)]
        if any(mixes):
            found.append(self._source_segment(steps, captures, mixes))
        for slot, segment in zip(self._slots, self._others, strict=True):
            scales = tuple(0.0 if s is None else float(s.scale[step]) for s, step in zip(slot, steps, strict=True))
            if any(scales):
                found.append(
                    _with_terms(segment, [self._slot_terms(slot, scales, site) for site in range(self._sites)])
                )
        return tuple(found)

    def _once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def _text_segment(
        self, steps: Sequence[int], captures: Sequence[Capture | None] | None, mixes: Sequence[bool]
    ) -> ContextSegment:
        terms = [
            SiteTerms(
                weight=self._text_weight(site),
                bias=self._bias([plan.biases for plan in self._plans], steps, site),
                mass=self._mass([plan.shifts for plan in self._plans], steps, site),
                capture=None if captures is None else captures[site],
            )
            for site in range(self._sites)
        ]
        segment, mix = _with_terms(self._text, terms), self._own_mix(steps, mixes)
        return segment if mix is None else replace(segment, v_mix=mix)

    def _text_weight(self, site: int) -> float | Tensor:
        maps = [None if plan.weights is None else plan.weights[site] for plan in self._plans]
        if all(m is None for m in maps):
            return 1.0
        return self._once(("text", *map(id, maps)), lambda: _stack(maps, [1.0] * len(maps), 1.0))

    def _slot_terms(self, slot: Sequence[SegmentPlan | None], scales: tuple[float, ...], site: int) -> SiteTerms:
        """The weight of a further segment: its strength in this step times its own factor or map."""
        own = [1.0 if s is None or s.weights is None else s.weights[site] for s in slot]
        maps = [m if isinstance(m, Tensor) else None for m in own]
        numbers = tuple(s * (1.0 if isinstance(m, Tensor) else m) for s, m in zip(scales, own, strict=True))
        if all(m is None for m in maps):
            weight = self._once(("slot", numbers), lambda: upload(np.array(numbers, np.float32), self._device))
        else:
            weight = self._once(("slot", numbers, *map(id, maps)), lambda: _stack(maps, numbers, None))
        return SiteTerms(weight=weight)

    def _bias(self, biases: Sequence[Sequence[TokenBias]], steps: Sequence[int], site: int) -> Tensor | None:
        """[R, 1, N, L], or None where no row has any in this step. biases: of each row."""
        active = active_biases(biases, steps, site)
        if not active:
            return None
        key = ("bias", *((row, id(bias), scale, id(values)) for row, bias, scale, values in active))
        return self._once(key, lambda: stack_biases(active, len(self._plans), self._length, self._device))

    def _mass(self, shifts: Sequence[Sequence[TokenShift]], steps: Sequence[int], site: int) -> MassShift | None:
        """Of all rows, or None where none has any in this step. shifts: of each row."""
        active = active_shifts(shifts, steps, site)
        if not active:
            return None
        key = ("mass", *((row, id(shift), part, id(window)) for row, shift, part, window in active))
        return self._once(key, lambda: stack_shifts(active, len(self._plans), self._device))

    def _mixed_rows(self, steps: Sequence[int]) -> list[bool]:
        """Rows that read another row's map in this step."""
        return [
            plan.mix is not None and bool(plan.mix.source[step].any())
            for plan, step in zip(self._plans, steps, strict=True)
        ]

    def _own_mix(self, steps: Sequence[int], mixes: Sequence[bool]) -> Tensor | None:
        """[R, L, L]: factors on the columns of each row's own map, on the diagonal; None where all are 1."""
        factors = np.ones((len(self._plans), self._length), np.float32)
        for row, (plan, step) in enumerate(zip(self._plans, steps, strict=True)):
            own = factors[row, : plan.context.shape[1]]
            if plan.factors is not None:
                own *= plan.factors[step]
            if plan.mix is not None and mixes[row]:
                own *= plan.mix.own[step]
        if (factors == 1.0).all():
            return None
        key = ("own", factors.tobytes())
        return self._once(key, lambda: torch.diag_embed(upload(factors, self._device)))

    def _source_segment(
        self, steps: Sequence[int], captures: Sequence[Capture | None] | None, mixes: Sequence[bool]
    ) -> ContextSegment:
        """The maps that rows take from their sources, on their own values; captured into the same buffers."""
        piece, reads = self._once(("source", *mixes), lambda: self._source_piece(mixes))
        read = [plan.mix if mixed else None for plan, mixed in zip(self._plans, mixes, strict=True)]
        terms = [
            SiteTerms(
                weight=self._text_weight(site),
                bias=self._bias([() if mix is None else mix.biases for mix in read], steps, site),
                mass=self._mass([() if mix is None else mix.shifts for mix in read], steps, site),
                capture=None if captures is None else captures[site],
            )
            for site in range(self._sites)
        ]
        segment = ContextSegment(
            pieces=(piece,),
            q_rows=reads.queries,
            k_rows=reads.keys,
            v_rows=reads.values,
            v_mix=self._mapper(steps, mixes),
        )
        return _with_terms(segment, terms)

    def _source_piece(self, mixes: Sequence[bool]) -> "tuple[ContextPiece, _Reads]":
        """The text with the lengths of the sources, and the rows that are read."""
        rows = upload(range(len(self._plans)), self._device)
        own = self._text.k_rows if self._text.k_rows is not None else rows
        source = upload([s if s is not None else r for r, s in enumerate(self._sources)], self._device)
        absent = upload(~np.array(mixes), self._device)
        (piece,) = self._text.pieces
        length = None if piece.length is None else piece.length[source]
        reads = _Reads(source, own[source].masked_fill(absent, -1), own.masked_fill(absent, -1))
        return replace(piece, length=length), reads

    def _mapper(self, steps: Sequence[int], mixes: Sequence[bool]) -> Tensor:
        """[R, L, L]: columns of the source's map -> columns of the row's map."""
        taken = np.zeros((len(self._plans), self._length), np.float32)
        for row, (plan, step) in enumerate(zip(self._plans, steps, strict=True)):
            if plan.mix is not None and mixes[row]:
                width = plan.mix.mapper.shape[1]
                taken[row, :width] = plan.mix.source[step]
                if plan.factors is not None:
                    taken[row, :width] *= plan.factors[step, :width]
        return self._once(("mapper", taken.tobytes()), lambda: self._make_mapper(taken))

    def _make_mapper(self, taken: NDArray[np.float32]) -> Tensor:
        """taken: [R, L], the factor of each column."""
        total = torch.zeros((len(self._plans), self._length, self._length))
        for row, plan in enumerate(self._plans):
            if plan.mix is not None:
                height, width = plan.mix.mapper.shape
                total[row, :height, :width] = plan.mix.mapper * torch.from_numpy(taken[row, :width])
        return sent(total, self._device)


@dataclass(frozen=True, slots=True)
class _Reads:
    """[R] int32 each, see `ContextSegment`."""

    queries: Tensor
    keys: Tensor
    values: Tensor


def _at(items: Sequence[SegmentPlan], place: int) -> SegmentPlan | None:
    return items[place] if place < len(items) else None


def _with_terms(segment: ContextSegment, terms: Sequence[SiteTerms]) -> ContextSegment:
    """The segment with its terms, or as it is where all of them are plain."""
    plain = all(
        isinstance(t.weight, float) and t.weight == 1.0 and t.bias is None and t.mass is None and t.capture is None
        for t in terms
    )
    return segment if plain else replace(segment, sites=tuple(terms))


def _stack(maps: Sequence[Tensor | None], scales: Sequence[float], empty: float | None) -> Tensor:
    """[R, N]: each row's map times its scale; a row without a map has `empty`, or its scale, everywhere."""
    like = next(m for m in maps if m is not None)
    return torch.stack(
        [
            torch.full_like(like, scale if empty is None else empty) if m is None else m * scale
            for m, scale in zip(maps, scales, strict=True)
        ]
    )
