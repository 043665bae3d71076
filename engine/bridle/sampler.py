"""The step loop. There is exactly one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.batch import Batch
from bridle.errors import Cancelled, NumericFault
from bridle.noise import counters, scales
from bridle.rows import Rows, StepTerms
from bridle.solvers import SolverTable
from bridle.track import Track
from bridle.uploads import upload, upload_rows

_NO_FAULT = -1
_DEPTH = 3
"""Of the history of every batch, at least: that of the deepest usual solvers (LMS, PLMS, UniPC, iPNDM), so that others are no
other shapes, and no other programs."""


class Evaluator(Protocol):
    """What the loop needs of a backend.

    alone: every image is evaluated without the others, so that its bits do not depend on them. runs_ahead: the host shall not
    wait for the device between steps; an image with a NaN then ends when the first image of its batch does.
    """

    dtype: torch.dtype
    alone: bool
    runs_ahead: bool

    def step(self, parts: Sequence[Rows], terms: StepTerms) -> tuple[Tensor, Tensor]:
        """The next samples and the guided model outputs, [P, C, h, w] float32 each. parts: all rows of the terms, in order."""


@dataclass(slots=True)
class StepSnapshot:
    """What a step callback sees after each step of each image.

    request_index: position in the list given to `sample`. image_index: image of that request. step: steps done, 1 to
    num_steps. timestep: what the model was told. latents: [4, h, w] float32, a copy. denoised: [4, h, w] float32, the
    clean latents predicted in this step, for previews.
    """

    request_index: int
    image_index: int
    step: int
    num_steps: int
    timestep: float
    latents: Tensor
    denoised: Tensor
    _track: Track

    def cancel(self) -> None:
        """Stops this image before its next step."""
        self._track.cancelled = True


Observer = Callable[[StepSnapshot], None]


def denoise(
    evaluator: Evaluator,
    tracks: Sequence[Track],
    observer: Observer | None = None,
    stepped: Callable[[int], object] | None = None,
) -> None:
    """Runs every track to its end; `track.latents` holds the result, `track.error` what stopped it.

    Tracks of one latent size share a batch; a track follows the one it reads. observer: called after each step of each
    image; an exception of it ends that image alone. stepped: called with the number of image steps just done.
    """
    sizes: dict[tuple[int, ...], list[Track]] = {}
    for track in tracks:
        sizes.setdefault((*track.latents.shape, *track.row_size), []).append(track)
    for group in sizes.values():
        _denoise_group(evaluator, group, observer, stepped)


def _denoise_group(
    evaluator: Evaluator,
    tracks: Sequence[Track],
    observer: Observer | None,
    stepped: Callable[[int], object] | None,
) -> None:
    state = _State([track for track in tracks if not track.finished], evaluator.alone)
    while state.batch is not None:
        before, guided = _step(evaluator, state)
        if stepped is not None:
            stepped(len(state.tracks))
        if not evaluator.runs_ahead or state.ends:
            state.read_faults()
        for index, track in enumerate(state.tracks):
            _observe(track, observer, before[index], guided[index], state.latents[index])
        _end_together(state.tracks)
        state.drop_finished()


def _step(evaluator: Evaluator, state: "_State") -> tuple[Tensor, Tensor]:
    """One step of all tracks: the samples before it and the guided model outputs, [P, C, h, w] each."""
    assert state.batch is not None
    before = state.latents
    latents, guided = evaluator.step(state.batch.rows(before, evaluator.dtype), state.terms())
    state.batch.collect()
    state.advance(latents, guided)
    return before, guided


def _end_together(tracks: Sequence[Track]) -> None:
    """What stops a track stops the one that it reads, and the other way round."""
    for track in tracks:
        if track.source is not None:
            problem = track.error or track.source.error
            track.error = track.source.error = problem


def _observe(track: Track, observer: Observer | None, before: Tensor, output: Tensor, latents: Tensor) -> None:
    step = track.step - 1
    if track.error is None and observer is not None and track.shown:
        d0, d1 = (float(value) for value in track.table.denoised[step])
        snapshot = StepSnapshot(
            request_index=track.request_index,
            image_index=track.image_index,
            step=track.step,
            num_steps=len(track.table),
            timestep=float(track.table.timesteps[step]),
            latents=latents.clone(),
            denoised=d0 * before + d1 * output,
            _track=track,
        )
        try:
            observer(snapshot)
        except Exception as problem:  # the caller's code: its failure ends this image and no other
            track.error = problem
    if track.cancelled and track.error is None and not track.finished:
        track.error = Cancelled(track.step)


class _State:
    """Latents and history of the active tracks, and the constant arguments of the guide-step-blend kernel.

    history: [P, 2 D, C, h, w], slots 0..D-1 samples and D..2D-1 model outputs of earlier steps, the last one first: the order
    of a sum over them does not depend on D, which the deepest solver of a batch decides.
    """

    def __init__(self, tracks: Sequence[Track], alone: bool) -> None:
        self.tracks = list(tracks)
        self.batch: Batch | None = None
        self.iteration = 0
        if self.tracks:
            self._alone = alone
            self.latents = torch.stack([track.latents for track in self.tracks])
            self._read = max(_history_depth(track) for track in self.tracks)
            self.depth = max(_DEPTH, self._read)
            count, *shape = self.latents.shape
            self.history = self.latents.new_zeros((count, 2 * self.depth, *shape))
            self._faults = torch.full((count,), _NO_FAULT, dtype=torch.int32, device=self.latents.device)
            self._begin()

    def _begin(self) -> None:
        """What is constant until a track ends."""
        device = self.latents.device
        self.batch = Batch(self.tracks, self._alone)
        self._since = self.iteration
        self._guidance = _guidance_terms(self.tracks, device)
        self._known = _known_arguments(self.tracks, self.latents)
        self._coefficients = upload_rows(self._coefficient_table(), device)
        self._levels = None if self._known is None else upload_rows(self._level_table(), device)
        self._draws = self._draw_tables()

    @property
    def ends(self) -> bool:
        """Whether a track has no step left."""
        return any(track.finished for track in self.tracks)

    def terms(self) -> StepTerms:
        """Of this step. What varies from step to step are rows of tables that the device has."""
        step = self.iteration - self._since
        return StepTerms(
            latents=self.latents,
            coefficients=self._coefficients[step],
            noise=self._noise(),
            **{name: table[step] for name, table in self._draws.items()},
            history=self.history,
            known_coefficients=None if self._levels is None else self._levels[step],
            **self._guidance,
            **(self._known or {}),
        )

    def advance(self, latents: Tensor, guided: Tensor) -> None:
        """Takes over what a step has given."""
        before, self.latents = self.latents, latents
        if self._read:
            samples, outputs = self.history[:, : self.depth - 1], self.history[:, self.depth : -1]
            self.history = torch.cat([before[:, None], samples, guided[:, None], outputs], 1)
        self._blend_with_sources()
        bad = ~torch.isfinite(self.latents).flatten(1).all(1) & (self._faults == _NO_FAULT)
        self._faults = self._faults.masked_fill(bad, self.iteration)
        self.iteration += 1
        for track in self.tracks:
            track.step += 1

    def read_faults(self) -> None:
        """Ends tracks that have a NaN or an infinity. Waits for the device."""
        for track, iteration in zip(self.tracks, self._faults.tolist(), strict=True):
            if iteration != _NO_FAULT and track.error is None:
                track.error = NumericFault(track.step - (self.iteration - iteration), "denoise")

    def _blend_with_sources(self) -> None:
        """Each track's own blend with the track it reads, which stands before it."""
        for index, track in enumerate(self.tracks):
            if track.blend is not None:
                self.latents[index] = track.blend(track.step, self.latents[index], self.latents[index - 1])

    def drop_finished(self) -> None:
        """Stores the latents of tracks that are done and keeps the others, in order."""
        keep = [index for index, track in enumerate(self.tracks) if not track.finished]
        if len(keep) == len(self.tracks):
            return
        for index, track in enumerate(self.tracks):
            if track.finished:
                track.latents = self.latents[index].clone()
        self.tracks = [self.tracks[index] for index in keep]
        self.batch = None
        if keep:
            kept = upload(keep, self.latents.device)
            self.latents, self.history, self._faults = self.latents[kept], self.history[kept], self._faults[kept]
            self._begin()

    def _steps_left(self) -> range:
        """Until the first track ends."""
        return range(min(len(track.table) - track.step for track in self.tracks))

    def _coefficient_table(self) -> NDArray[np.float32]:
        """[S, P, 3 + 2 D], of the steps that are left: sample, model output, noise, then the history slots."""
        rows = np.zeros((len(self._steps_left()), len(self.tracks), 3 + 2 * self.depth), np.float32)
        for later in self._steps_left():
            for row, track in zip(rows[later], self.tracks, strict=True):
                self._fill_coefficients(row, track.table, track.step + later)
        return rows

    def _fill_coefficients(self, row: NDArray[np.float32], table: SolverTable, step: int) -> None:
        row[0], row[1] = table.sample_coefficients[step, 0], table.output_coefficients[step, 0]
        row[2] = float(np.any(table.noise_coefficients[step]))
        for offset, values in ((3, table.sample_coefficients), (3 + self.depth, table.output_coefficients)):
            ages = min(values.shape[1], step + 1)
            row[offset : offset + ages - 1] = values[step, 1:ages]

    def _level_table(self) -> NDArray[np.float32]:
        """[S, P, 2]: the noise level of known regions after each step that is left."""
        levels = [[t.table.add_noise[t.step + later + 1] for t in self.tracks] for later in self._steps_left()]
        return np.array(levels, np.float32)

    def _draw_tables(self) -> dict[str, Tensor]:
        """[S, P, ...]: what steps make noise from themselves; empty where no track is of that kind."""
        counted = [track.table.noise_coefficients.shape[1] for track in self.tracks if track.noise.seed is not None]
        draws, device = max(counted, default=0), self.latents.device
        if not draws:
            return {}
        left = [(track, range(track.step, track.step + len(self._steps_left()))) for track in self.tracks]
        sources = np.stack([counters(track.noise, steps) for track, steps in left], axis=1)
        factors = np.stack([scales(track.noise, track.table, steps, draws) for track, steps in left], axis=1)
        return {"noise_source": upload_rows(sources, device), "noise_scale": upload_rows(factors, device)}

    def _noise(self) -> Tensor | None:
        """[P, C, h, w]: what the host draws for each track, times its coefficients; None when no track needs any."""
        drawn = [t.noise.step(t.table, t.step, latents) for t, latents in zip(self.tracks, self.latents, strict=True)]
        if all(noise is None for noise in drawn):
            return None
        return torch.stack([torch.zeros_like(self.latents[0]) if noise is None else noise for noise in drawn])


def _history_depth(track: Track) -> int:
    return int(max(track.table.sample_coefficients.shape[1], track.table.output_coefficients.shape[1])) - 1


def _guidance_terms(tracks: Sequence[Track], device: torch.device) -> dict[str, Any]:
    """The kernel's terms: a track's model output is the sum of its rows' outputs, each times its coefficient and weights."""
    counts = [len(track.rows) for track in tracks]
    rows = [row for track in tracks for row in track.rows]
    blends = {id(row.blend): row.blend for row in rows if row.blend is not None}
    places = {key: place for place, key in enumerate(blends)}

    def integers(values: Sequence[int]) -> Tensor:
        return upload(values, device)

    return {
        "term_start": integers(np.concatenate(([0], np.cumsum(counts))).tolist()),
        "term_row": integers(range(len(rows))),
        "term_coefficient": upload(np.array([row.coefficient for row in rows], np.float32), device),
        "term_weight": integers([-1 if row.blend is None else places[id(row.blend)] for row in rows]),
        "term_top": integers([0 if row.window is None else row.window.top for row in rows]),
        "term_left": integers([0 if row.window is None else row.window.left for row in rows]),
        "weights": torch.stack(list(blends.values())) if blends else None,
    }


def _known_arguments(tracks: Sequence[Track], latents: Tensor) -> dict[str, Tensor] | None:
    """Known regions of inpainting, None where there are none."""
    if all(track.known is None for track in tracks):
        return None
    zeros, ones = torch.zeros_like(latents[0]), torch.ones_like(latents[0, :1])
    return {
        "known": torch.stack([track.known.clean if track.known else zeros for track in tracks]),
        "known_noise": torch.stack([track.known.noise if track.known else zeros for track in tracks]),
        "mask": torch.stack([track.known.mask if track.known else ones for track in tracks]),
        "has_known": upload([int(track.known is not None) for track in tracks], latents.device),
    }
