"""Bootstrapping of latent regions: in the first steps each sees a noised flat background around itself.

MultiDiffusion, arXiv 2302.08113, `MultiDiffusion.generate` of region_based.py. What is random comes from the image's own source
of noise, in the official order: colours, one posterior draw per background, then (after the initial latents) the background of
each region for every step and view. The noise on a background is that of the initial latents. All of it is drawn before the
first step; counted, it depends on the seed, the step, the view and the region alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.image_conditioning import encode_moments, from_moments
from bridle.lowering import Bootstrap, RowPlan, Window
from bridle.noise import NoiseSource, StartDraw


@dataclass(frozen=True, slots=True)
class Backgrounds:
    """colours: [n, 3] in [0, 1]. draws: standard normal [n, 4, h, w], for the encoder's distribution."""

    colours: Tensor
    draws: Tensor


def draw_backgrounds(count: int, window: tuple[int, int], channels: int, noise: NoiseSource) -> Backgrounds:
    """Colours and draws for `count` backgrounds as large as a window (h, w) of latent cells."""
    colours = noise.uniform(StartDraw.COLOURS, (count, 3))
    draws = [noise.start(StartDraw.BACKGROUND + index, (1, channels, *window)) for index in range(count)]
    return Backgrounds(colours, torch.cat(draws))


def draw_picks(steps: int, count: int, views: int, regions: int, noise: NoiseSource) -> Tensor:
    """[steps, views, regions]: which background each region sees. Drawn for views too where a region is empty."""
    return noise.choices((steps, views, regions), count)


def encode_backgrounds(
    backend: ReferenceBackend, backgrounds: Backgrounds, used: Sequence[int], tiling: bool
) -> Tensor:
    """Latents [n, 4, h, w] in the sampler's scale; those that are not `used` are left at zero."""
    latents = torch.zeros_like(backgrounds.draws)
    factor = backend.model.vae.config.scale
    height, width = (side * factor for side in latents.shape[-2:])
    for index in used:
        image = (backgrounds.colours[index] * 2.0 - 1.0).reshape(1, 3, 1, 1).expand(1, 3, height, width)
        moments = encode_moments(backend, image, tiling)
        latents[index] = from_moments(moments, backgrounds.draws[index])[0].cpu()
    return latents


def bootstrap_rows(
    rows: Sequence[RowPlan],
    masks: Sequence[Tensor],
    windows: Sequence[Window | None],
    picks: Tensor,
    latents: Tensor,
    noise: Tensor,
) -> list[RowPlan]:
    """The rows, those of regions with their backgrounds. masks: [h, w] per region. noise: [C, h, w] of the canvas."""
    found = []
    for row in rows:
        if row.region is not None:
            view = windows.index(row.window)
            chosen = tuple(int(pick) for pick in picks[:, view, row.region])
            mask, seen = masks[row.region][None], noise
            if row.window is not None:
                mask, seen = row.window.cut(mask), row.window.cut(noise)
            bootstrap = Bootstrap(mask.to(noise.device), latents.to(noise.device), seen, chosen)
            row = replace(row, bootstrap=bootstrap)
        found.append(row)
    return found
