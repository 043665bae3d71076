"""Rows of several tracks, stacked for one evaluation. Static parts are stacked once per set of tracks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bridle.cross_attention import CrossAttention
from bridle.lowering import Bootstrap, BranchPlan, RowPlan
from bridle.map_capture import MapCapture
from bridle.rows import Branch, ContextSegment, Residual, Rows
from bridle.segment_stack import stack_context
from bridle.time_rows import TimeRows
from bridle.track import Track
from bridle.uploads import Constants

MAX_CELLS = 32 * 64 * 64
"""Latent cells of one evaluation; more rows are evaluated one part after another, so that memory stays bounded."""


class Batch:
    """The rows of `tracks`, all of one row size, in parts of bounded size.

    alone: every track, with the one that it reads, is a part of its own, so that nothing about it depends on the others.
    """

    def __init__(self, tracks: Sequence[Track], alone: bool = False) -> None:
        height, width = tracks[0].row_size
        most = max(1, MAX_CELLS // (height * width))
        groups = _families(tracks) if alone else [range(len(tracks))]
        self._parts = [_Part(tracks, members) for group in groups for members in _parts(tracks, group, most)]

    def rows(self, latents: Tensor, dtype: torch.dtype) -> tuple[Rows, ...]:
        """The rows of the tracks' current steps, part by part. latents: [P, C, h, w] float32, before input scaling."""
        return tuple(part.rows(latents, dtype) for part in self._parts)

    def collect(self) -> None:
        """Adds the maps that were captured since `rows` to the tracks' records."""
        for part in self._parts:
            part.collect()


def _families(tracks: Sequence[Track]) -> list[range]:
    """Tracks that read each other stand together: spans of indices."""
    starts = [index for index, track in enumerate(tracks) if not _reads_previous(tracks, index)]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(tracks)], strict=True)]


def _reads_previous(tracks: Sequence[Track], index: int) -> bool:
    source = tracks[index].source
    return source is not None and index > 0 and source is tracks[index - 1]


def _parts(tracks: Sequence[Track], group: range, most: int) -> list[list[tuple[int, int]]]:
    """(track, row of the track) of every part of a group. Rows of tracks that read each other stay together."""
    units: list[list[tuple[int, int]]] = []
    for index in group:
        rows = [(index, row) for row in range(len(tracks[index].rows))]
        if index > group.start and _reads_previous(tracks, index):
            while units and units[-1][0][0] == index - 1:
                rows = units.pop() + rows
            units.append(rows)
        else:
            units.extend([row] for row in rows)
    parts: list[list[tuple[int, int]]] = [[]]
    for unit in units:
        if parts[-1] and len(parts[-1]) + len(unit) > most:
            parts.append([])
        parts[-1].extend(unit)
    return parts


class _Part:
    """Some rows of some tracks. members: (track, row of the track) of each."""

    def __init__(self, tracks: Sequence[Track], members: Sequence[tuple[int, int]]) -> None:
        self._tracks = tuple(tracks)
        self._owners = tuple(track for track, _ in members)
        self._plans: tuple[RowPlan, ...] = tuple(tracks[track].rows[row] for track, row in members)
        places = {(id(tracks[track]), row): place for place, (track, row) in enumerate(members)}
        self._records = [
            (places[id(track), record.row], track, record)
            for track in tracks
            for record in track.records
            if (id(track), record.row) in places
        ]
        self._map_rows = [self._source(places, place, "self_source") for place in range(len(members))]
        self._cross = CrossAttention(self._plans, [self._source(places, place, "mix") for place in range(len(members))])
        self._extra = self._stack_extra()
        self._branch_contexts: dict[tuple[int, ...], ContextSegment] = {}
        self._branch_time_rows: dict[tuple[int, ...], TimeRows] = {}
        self._device = self._plans[0].context.device
        self._constants = Constants(self._device)
        self._times = TimeRows([plan.time for plan in self._plans])
        self._captured: MapCapture | None = None

    def collect(self) -> None:
        """Adds what was captured since `rows` to the records."""
        if self._captured is not None:
            self._captured.collect()
            self._captured = None

    def rows(self, latents: Tensor, dtype: torch.dtype) -> Rows:
        """The primitives of the current steps."""
        steps = [self._tracks[owner].step for owner in self._owners]
        active = [(place, record) for place, track, record in self._records if record.active[track.step]]
        self._captured = MapCapture(active, self._device) if active else None
        captures = None if self._captured is None else self._captured.sites(len(self._plans[0].kv))
        return Rows(
            sample=self._sample(latents, steps).to(dtype),
            time=self._times.at(steps),
            context=self._cross.segments(steps, captures),
            extra_channels=self._extra,
            residuals=self._residuals(steps) or None,
            branches=self._branches(steps),
            self_rows=self._self_rows(steps),
        )

    def _source(self, places: dict[tuple[int, int], int], place: int, field: str) -> int | None:
        """The batch row that a row's `mix` or `self_source` reads."""
        read = getattr(self._plans[place], field)
        track = self._tracks[self._owners[place]]
        if read is None or track.source is None:
            return None
        return places[id(track.source), read.row % len(track.source.rows)]

    def _sample(self, latents: Tensor, steps: Sequence[int]) -> Tensor:
        """What each row sees of its track's latents, [R, C, h, w], scaled for the model."""
        scales = [self._tracks[owner].table.input_scale[step] for owner, step in zip(self._owners, steps, strict=True)]
        if all(plan.window is None and plan.bootstrap is None for plan in self._plans):
            seen = latents.index_select(0, self._constants.upload(np.array(self._owners, np.int32)))
        else:
            seen = torch.stack([self._seen(latents, row, step) for row, step in enumerate(steps)])
        return seen * self._constants.upload(np.array(scales, np.float32))[:, None, None, None]

    def _seen(self, latents: Tensor, row: int, step: int) -> Tensor:
        plan, owner = self._plans[row], self._owners[row]
        seen = latents[owner] if plan.window is None else plan.window.cut(latents[owner])
        if plan.bootstrap is None or step >= len(plan.bootstrap.picks):
            return seen
        return _bootstrapped(plan.bootstrap, seen, step, self._tracks[owner].table.add_noise[step])

    def _self_rows(self, steps: Sequence[int]) -> tuple[Tensor | None, ...] | None:
        plans = [plan.self_source for plan in self._plans]
        active = [source is not None and bool(source.active[step]) for source, step in zip(plans, steps, strict=True)]
        if not any(active):
            return None
        levels = next(len(source.levels) for source in plans if source is not None)
        return tuple(self._self_rows_at(level, active) for level in range(levels))

    def _self_rows_at(self, level: int, active: Sequence[bool]) -> Tensor | None:
        reads = list(range(len(self._plans)))
        for row, (plan, on, source) in enumerate(zip(self._plans, active, self._map_rows, strict=True)):
            if on and source is not None and plan.self_source is not None and plan.self_source.levels[level]:
                reads[row] = source
        if reads == list(range(len(reads))):
            return None
        return self._constants.upload(np.array(reads, np.int32))

    def _stack_extra(self) -> Tensor | None:
        extra = [plan.extra_channels for plan in self._plans if plan.extra_channels is not None]
        return torch.cat(extra) if extra else None

    def _residuals(self, steps: Sequence[int]) -> dict[str, tuple[Residual, ...]]:
        """Residuals of active steps, grouped by point and by their place in the row's list."""
        groups: dict[tuple[int, str, bool], list[int]] = {}
        for row, (plan, step) in enumerate(zip(self._plans, steps, strict=True)):
            for place, residual in enumerate(plan.residuals):
                if residual.scale[step] != 0.0:
                    groups.setdefault((place, residual.point, residual.mask is None), []).append(row)
        points: dict[str, tuple[Residual, ...]] = {}
        for (place, point, _), rows in groups.items():
            points[point] = (*points.get(point, ()), self._residual(place, rows, steps))
        return points

    def _residual(self, place: int, rows: Sequence[int], steps: Sequence[int]) -> Residual:
        members = [self._plans[row].residuals[place] for row in rows]
        shared = all(member.values is members[0].values for member in members)
        values = members[0].values if shared else torch.cat([member.values for member in members])
        masks = [member.mask for member in members if member.mask is not None]
        scale = np.array([member.scale[steps[row]] for member, row in zip(members, rows, strict=True)], np.float32)
        everyone = len(rows) == len(self._plans)
        return Residual(
            values=values,
            scale=self._constants.upload(scale),
            rows=None if everyone else tuple(rows),
            mask=torch.cat(masks) if masks else None,
        )

    def _branches(self, steps: Sequence[int]) -> tuple[Branch, ...]:
        """Branches of active steps: rows with the same network at the same place of their lists run together."""
        groups: dict[tuple[int, int, bool], list[int]] = {}
        for row, (plan, step) in enumerate(zip(self._plans, steps, strict=True)):
            for place, branch in enumerate(plan.branches):
                if branch.scale[step].any():
                    groups.setdefault((place, id(branch.weights), branch.mask is None), []).append(row)
        return tuple(self._branch(place, rows, steps) for (place, _, _), rows in groups.items())

    def _branch(self, place: int, rows: Sequence[int], steps: Sequence[int]) -> Branch:
        members = [self._plans[row].branches[place] for row in rows]
        first = members[0]
        scale = np.stack([member.scale[steps[row]] for member, row in zip(members, rows, strict=True)])
        masks = [member.mask for member in members if member.mask is not None]
        return Branch(
            weights=first.weights,
            config=first.config,
            rows=tuple(rows),
            time=self._branch_times(place, rows, members).at([steps[row] for row in rows]),
            context=(self._branch_context(place, rows, members),),
            hint=torch.cat([member.hint for member in members]),
            scale=self._constants.upload(scale.astype(np.float32)),
            mask=torch.cat(masks) if masks else None,
            global_pool=first.global_pool,
        )

    def _branch_times(self, place: int, rows: Sequence[int], members: Sequence[BranchPlan]) -> TimeRows:
        key = (place, *rows)
        if key not in self._branch_time_rows:
            self._branch_time_rows[key] = TimeRows([member.time for member in members])
        return self._branch_time_rows[key]

    def _branch_context(self, place: int, rows: Sequence[int], members: Sequence[BranchPlan]) -> ContextSegment:
        key = (place, *rows)
        if key not in self._branch_contexts:
            self._branch_contexts[key] = stack_context([member.kv for member in members])
        return self._branch_contexts[key]


def _bootstrapped(bootstrap: Bootstrap, seen: Tensor, step: int, level: Sequence[float]) -> Tensor:
    """The row's own latents inside its mask, a noised flat background outside (MultiDiffusion, region_based.py)."""
    clean = bootstrap.backgrounds[bootstrap.picks[step]]
    background = float(level[0]) * clean + float(level[1]) * bootstrap.noise
    return seen * bootstrap.mask + background * (1.0 - bootstrap.mask)
