"""The step loop. There is exactly one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bridle.batch import Batch
from bridle.errors import Cancelled, NumericFault
from bridle.rows import Rows
from bridle.track import Track
from bridle_kernels.guide_step_blend import guide_step_blend


class Evaluator(Protocol):
    """What the loop needs of a backend."""

    dtype: torch.dtype

    def evaluate(self, rows: Rows) -> Tensor:
        """Model outputs [R, C, h, w] of a batch of rows."""


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
    state = _State([track for track in tracks if not track.finished])
    while state.batch is not None:
        parts = state.batch.rows(state.latents, evaluator.dtype)
        outputs = torch.cat([evaluator.evaluate(rows) for rows in parts])
        before, model_outputs = state.advance(outputs)
        if stepped is not None:
            stepped(len(state.tracks))
        for index, track in enumerate(state.tracks):
            _observe(track, observer, before[index], model_outputs[index], state.latents[index])
        _end_together(state.tracks)
        state.drop_finished()


def _end_together(tracks: Sequence[Track]) -> None:
    """What stops a track stops the one that it reads, and the other way round."""
    for track in tracks:
        if track.source is not None:
            problem = track.error or track.source.error
            track.error = track.source.error = problem


def _observe(track: Track, observer: Observer | None, before: Tensor, output: Tensor, latents: Tensor) -> None:
    step = track.step - 1
    if not bool(torch.isfinite(latents).all()):
        track.error = NumericFault(step, "denoise")
    elif observer is not None and track.shown:
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

    history: [P, 2 D, C, h, w], slots 0..D-1 samples and D..2D-1 model outputs of earlier steps, slot = step mod D.
    """

    def __init__(self, tracks: Sequence[Track]) -> None:
        self.tracks = list(tracks)
        self.batch: Batch | None = Batch(self.tracks) if self.tracks else None
        self.iteration = 0
        if self.tracks:
            self.latents = torch.stack([track.latents for track in self.tracks])
            self.depth = max(_history_depth(track) for track in self.tracks)
            count, *shape = self.latents.shape
            self.history = self.latents.new_zeros((count, 2 * self.depth, *shape))
            self._guidance = _guidance_terms(self.tracks, self.latents.device)

    def advance(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """One step of all tracks. Returns the samples before it and the guided model outputs, [P, C, h, w] each."""
        before = self.latents
        known = _known_arguments(self.tracks, before)
        self.latents, guided = guide_step_blend(
            outputs,
            **self._guidance,
            latents=before,
            history=self.history if self.depth else None,
            coefficients=self._coefficients(),
            noise=self._noise(),
            **known,
        )
        if self.depth:
            slot = self.iteration % self.depth
            self.history[:, slot] = before
            self.history[:, self.depth + slot] = guided
        self.iteration += 1
        self._blend_with_sources()
        for track in self.tracks:
            track.step += 1
        return before, guided

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
        self.batch = Batch(self.tracks) if keep else None
        if keep:
            self.latents = self.latents[keep]
            self.history = self.history[keep]
            self._guidance = _guidance_terms(self.tracks, self.latents.device)

    def _coefficients(self) -> Tensor:
        """[P, 3 + 2 D]: sample, model output, noise, then the history slots."""
        rows = np.zeros((len(self.tracks), 3 + 2 * self.depth), np.float32)
        for row, track in zip(rows, self.tracks, strict=True):
            table, step = track.table, track.step
            row[0], row[1] = table.sample_coefficients[step, 0], table.output_coefficients[step, 0]
            row[2] = float(np.any(table.noise_coefficients[step]))
            for offset, values in ((3, table.sample_coefficients), (3 + self.depth, table.output_coefficients)):
                for age in range(1, min(values.shape[1], step + 1)):
                    row[offset + (self.iteration - age) % self.depth] = values[step, age]
        return torch.from_numpy(rows).to(self.latents.device)

    def _noise(self) -> Tensor | None:
        """[P, C, h, w]: each track's own draws times their coefficients; None when no track needs any."""
        drawn = [_step_noise(track, self.latents[index]) for index, track in enumerate(self.tracks)]
        if all(noise is None for noise in drawn):
            return None
        return torch.stack([torch.zeros_like(self.latents[0]) if noise is None else noise for noise in drawn])


def _history_depth(track: Track) -> int:
    return int(max(track.table.sample_coefficients.shape[1], track.table.output_coefficients.shape[1])) - 1


def _step_noise(track: Track, like: Tensor) -> Tensor | None:
    """Draws as diffusers does for one image, in its order, also those whose coefficient is 0."""
    coefficients = track.table.noise_coefficients[track.step]
    total: Tensor | None = None
    for draw in range(int(track.table.noise_draws[track.step])):
        noise = torch.randn((1, *like.shape), generator=track.generator, dtype=torch.float32)[0].to(like.device)
        if coefficients[draw] != 0.0:
            term = float(coefficients[draw]) * noise
            total = term if total is None else total + term
    return total


def _guidance_terms(tracks: Sequence[Track], device: torch.device) -> dict[str, Any]:
    """The kernel's terms: a track's model output is the sum of its rows' outputs, each times its coefficient and weights."""
    counts = [len(track.rows) for track in tracks]
    rows = [row for track in tracks for row in track.rows]
    blends = {id(row.blend): row.blend for row in rows if row.blend is not None}
    places = {key: place for place, key in enumerate(blends)}

    def integers(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return {
        "term_start": integers(np.concatenate(([0], np.cumsum(counts))).tolist()),
        "term_row": integers(range(len(rows))),
        "term_coefficient": torch.tensor([row.coefficient for row in rows], dtype=torch.float32, device=device),
        "term_weight": integers([-1 if row.blend is None else places[id(row.blend)] for row in rows]),
        "term_top": integers([0 if row.window is None else row.window.top for row in rows]),
        "term_left": integers([0 if row.window is None else row.window.left for row in rows]),
        "weights": torch.stack(list(blends.values())) if blends else None,
    }


def _known_arguments(tracks: Sequence[Track], latents: Tensor) -> dict[str, Any]:
    """Known regions of inpainting, at the noise level after this step."""
    if all(track.known is None for track in tracks):
        return dict.fromkeys(("known", "known_noise", "known_coefficients", "mask", "has_known"))
    zeros, ones = torch.zeros_like(latents[0]), torch.ones_like(latents[0, :1])
    levels = np.array([track.table.add_noise[track.step + 1] for track in tracks], np.float32)
    flags = [track.known is not None for track in tracks]
    return {
        "known": torch.stack([track.known.clean if track.known else zeros for track in tracks]),
        "known_noise": torch.stack([track.known.noise if track.known else zeros for track in tracks]),
        "known_coefficients": torch.from_numpy(levels).to(latents.device),
        "mask": torch.stack([track.known.mask if track.known else ones for track in tracks]),
        "has_known": torch.tensor(flags, dtype=torch.int32, device=latents.device),
    }
