"""The local blend of a prompt edit as what happens to its latents after each step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bridle.controls.local_blend import blend, blend_level, blend_mask
from bridle.map_controls import LocalBlend
from bridle.networks.configs import UNetConfig
from bridle.networks.layout import level_sizes
from bridle.networks.unet import attention_sites
from bridle.track import MapRecord


@dataclass(frozen=True, slots=True)
class SourceBlend:
    """Keeps the source's latents outside the words' area. source, own: the maps of the words. size: of the maps' level."""

    source: MapRecord
    own: MapRecord
    size: tuple[int, int]
    threshold: float
    first_step: int

    def __call__(self, step: int, latents: Tensor, source: Tensor) -> Tensor:
        """The latents [C, h, w] after step `step` (from 0)."""
        if step < self.first_step:
            return latents
        theirs, ours = (_only_level(record).reshape(-1, *self.size) for record in (self.source, self.own))
        latent_size = (latents.shape[-2], latents.shape[-1])
        return blend(source, latents, blend_mask(theirs, ours, latent_size, self.threshold))


def _only_level(record: MapRecord) -> Tensor:
    """[columns, N]."""
    (sums,) = record.sums.values()
    return sums


def source_blend(
    config: UNetConfig,
    control: LocalBlend,
    source: tuple[int, Sequence[int]],
    own: tuple[int, Sequence[int]],
    latent_size: tuple[int, int],
    steps: int,
) -> SourceBlend:
    """source, own: the row of each track and the columns of the blend words in its prompt."""
    sizes = level_sizes(latent_size, config.levels)
    records = [_record(config, row, columns, sizes, steps) for row, columns in (source, own)]
    size = sizes[blend_level(attention_sites(config))]
    return SourceBlend(records[0], records[1], size, control.threshold, int(control.start * steps))


def _record(
    config: UNetConfig, row: int, columns: Sequence[int], sizes: Sequence[tuple[int, int]], steps: int
) -> MapRecord:
    """Of the encoder's and decoder's cross-attentions at the blend's level; of the middle block's where there are no others."""
    sites = attention_sites(config)
    level = blend_level(sites)
    outside = any(site.level == level and not site.name.startswith("mid_block") for site in sites)
    return MapRecord(
        row=row,
        columns=tuple(columns),
        levels=tuple(
            level if site.level == level and not (outside and site.name.startswith("mid_block")) else None
            for site in sites
        ),
        sizes=tuple(sizes),
        active=np.ones(steps, dtype=bool),
    )
