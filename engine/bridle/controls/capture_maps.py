"""CaptureMaps: cross-attention maps of words, summed over layers, heads and steps (DAAM, arXiv 2210.04885)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bridle.controls.site_maps import chosen_sites
from bridle.errors import RequestError
from bridle.map_controls import CaptureMaps
from bridle.networks.configs import UNetConfig
from bridle.networks.layout import level_sizes
from bridle.networks.unet import attention_sites
from bridle.track import MapRecord


def check(config: UNetConfig, control: CaptureMaps, latent_size: tuple[int, int], steps: int) -> None:
    """Raises RequestError for layers, resolutions and steps that do not exist."""
    if steps == 0:
        raise RequestError("CaptureMaps.steps", "a schedule without steps (strength 0)", "at least one step")
    if not any(level is not None for level in _levels(config, control, latent_size)):
        sites = zip(attention_sites(config), _chosen(config, control), strict=True)
        sizes = level_sizes(latent_size, config.levels)
        known = sorted({max(sizes[site.level]) for site, chosen in sites if chosen}, reverse=True)
        raise RequestError("CaptureMaps.resolution", control.resolution, f"one of {known} at this size")
    for i, step in enumerate(control.steps or ()):
        if step >= steps:
            raise RequestError(f"CaptureMaps.steps[{i}]", step, f"less than the {steps} steps of the schedule")


def record(
    config: UNetConfig,
    control: CaptureMaps,
    columns: Sequence[int],
    row: int,
    latent_size: tuple[int, int],
    steps: int,
) -> MapRecord:
    """What to remember of row `row` of a track. columns: distinct columns of all the words."""
    return MapRecord(
        row=row,
        columns=tuple(columns),
        levels=_levels(config, control, latent_size),
        sizes=level_sizes(latent_size, config.levels),
        active=_active(control, steps),
    )


def _levels(config: UNetConfig, control: CaptureMaps, latent_size: tuple[int, int]) -> tuple[int | None, ...]:
    """The level of each site that takes part."""
    sizes = level_sizes(latent_size, config.levels)
    return tuple(
        site.level if take and control.resolution in (None, max(sizes[site.level])) else None
        for site, take in zip(attention_sites(config), _chosen(config, control), strict=True)
    )


def _chosen(config: UNetConfig, control: CaptureMaps) -> tuple[bool, ...]:
    """Which cross-attentions take part."""
    if control.layers is not None:
        return chosen_sites(config, control.layers, "CaptureMaps.layers")
    outer = tuple(not site.name.startswith("mid_block") for site in attention_sites(config))
    return outer if any(outer) else (True,) * len(outer)


def _active(control: CaptureMaps, steps: int) -> NDArray[np.bool_]:
    active = np.ones(steps, dtype=bool) if control.steps is None else np.zeros(steps, dtype=bool)
    active[list(control.steps or ())] = True
    return active
