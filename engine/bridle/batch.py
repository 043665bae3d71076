"""Rows of several tracks, stacked for one evaluation. Static parts are stacked once per set of tracks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bridle.lowering import BranchPlan, RowPlan, Track
from bridle.rows import KV, Branch, ContextPiece, ContextSegment, Residual, Rows


def stack_context(rows: Sequence[tuple[KV, ...]]) -> ContextSegment:
    """One segment from the keys and values [1, L, H, d] of each row; shorter rows are padded and get a length."""
    lengths = [row[0].k.shape[1] if row else 0 for row in rows]
    longest = max(lengths)
    sites = tuple(
        KV(_stack_padded([kv.k for kv in site], longest), _stack_padded([kv.v for kv in site], longest))
        for site in zip(*rows, strict=True)
    )
    if min(lengths) == longest:
        return ContextSegment((ContextPiece(sites),))
    device = rows[0][0].k.device
    return ContextSegment((ContextPiece(sites, torch.tensor(lengths, dtype=torch.int32, device=device)),))


def _stack_padded(tensors: Sequence[Tensor], length: int) -> Tensor:
    padded = [
        t if t.shape[1] == length else torch.nn.functional.pad(t, (0, 0, 0, 0, 0, length - t.shape[1])) for t in tensors
    ]
    return torch.cat(padded)


class Batch:
    """The rows of `tracks`, all of one latent size."""

    def __init__(self, tracks: Sequence[Track]) -> None:
        self.tracks = tuple(tracks)
        self._plans: tuple[RowPlan, ...] = tuple(row for track in tracks for row in track.rows)
        self._owners = tuple(index for index, track in enumerate(tracks) for _ in track.rows)
        self._context = stack_context([row.kv for row in self._plans])
        self._extra = self._stack_extra()
        self._branch_contexts: dict[tuple[int, ...], ContextSegment] = {}

    def rows(self, latents: Tensor, dtype: torch.dtype) -> Rows:
        """The rows of the tracks' current steps. latents: [P, C, h, w] float32, before input scaling."""
        steps = [self.tracks[owner].step for owner in self._owners]
        scales = [float(track.table.input_scale[track.step]) for track in self.tracks]
        scaled = latents * torch.tensor(scales, dtype=torch.float32, device=latents.device).reshape(-1, 1, 1, 1)
        sample = scaled[list(self._owners)].to(dtype)
        return Rows(
            sample=sample,
            time=torch.stack([plan.time[step] for plan, step in zip(self._plans, steps, strict=True)]),
            context=(self._context,),
            extra_channels=self._extra,
            residuals=self._residuals(steps) or None,
            branches=self._branches(steps),
        )

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
            scale=torch.from_numpy(scale).to(values.device),
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
            time=torch.stack([member.time[steps[row]] for member, row in zip(members, rows, strict=True)]),
            context=(self._branch_context(place, rows, members),),
            hint=torch.cat([member.hint for member in members]),
            scale=torch.from_numpy(scale.astype(np.float32)).to(first.hint.device),
            mask=torch.cat(masks) if masks else None,
            global_pool=first.global_pool,
        )

    def _branch_context(self, place: int, rows: Sequence[int], members: Sequence[BranchPlan]) -> ContextSegment:
        key = (place, *rows)
        if key not in self._branch_contexts:
            self._branch_contexts[key] = stack_context([member.kv for member in members])
        return self._branch_contexts[key]
