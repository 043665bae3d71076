"""InjectMap: a map of the user's own moves words, before or after the softmax of cross-attention.

bias: with m the map lifted off zero, m~ = FLOOR + (1 - FLOOR) m, strength * log(m~ / mean m~) is added to the scores of the
words. Their attention at a position is multiplied by (m~ / mean m~)^strength before it is normalised, so that a flat map
changes nothing.

mass: A'[u, i] = (1 - strength) A[u, i] + strength g[u] sum_v A[v, i] with g = m / sum m, the forward guidance of "Training-Free
Layout Control with Cross-Attention Guidance" (arXiv 2304.03373).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.controls.site_maps import area_sites, chosen_sites, where
from bridle.errors import RequestError
from bridle.lowering import RowPlan, TokenBias, TokenShift, by_window, window_scales
from bridle.map_controls import InjectMap
from bridle.masks import box_mask, read_mask
from bridle.networks.configs import UNetConfig

FLOOR = 0.02
"""What is left of a word, at strength 1, where its map is 0: about 2 % of where the map is 1."""

_ROUNDING = 1e-5


def check(backend: ReferenceBackend, control: InjectMap, size: tuple[int, int]) -> None:
    """Raises RequestError for layers that do not exist and maps that vanish at this size."""
    chosen_sites(backend.model.unet.config, control.layers, "InjectMap.layers")
    _canvas(control, size)


def check_shares(
    config: UNetConfig, controls: Sequence[InjectMap], columns: Mapping[str, Sequence[int]], steps: int
) -> None:
    """Raises RequestError where maps of mode "mass" together move more of a word's attention than there is."""
    moved: dict[int, NDArray[np.float64]] = {}
    for control in controls:
        if control.mode != "mass":
            continue
        active = window_scales(steps, control.start, control.end, control.strength)
        share = np.outer(active, chosen_sites(config, control.layers, "InjectMap.layers"))
        for column in {column for word in control.words for column in columns[word]}:
            moved[column] = moved.get(column, 0.0) + share
            if moved[column].max() > 1.0 + _ROUNDING:
                wants = "at most 1 together with the other maps of a word, in every step and layer"
                raise RequestError("InjectMap.strength", control.strength, wants)


def lower(
    backend: ReferenceBackend,
    control: InjectMap,
    columns: Sequence[int],
    rows: Sequence[RowPlan],
    steps: int,
    size: tuple[int, int],
) -> None:
    """Adds the map to the rows. columns: of all the words. size: (height, width) in pixels."""
    scale = window_scales(steps, control.start, control.end, control.strength)
    if not scale.any():
        return
    config, factor = backend.model.unet.config, backend.model.vae.config.scale
    chosen = chosen_sites(config, control.layers, "InjectMap.layers")
    canvas = _canvas(control, size)
    for window, members in by_window(rows).items():
        maps = area_sites(canvas, window, factor, config)
        prepared = {id(m): _prepare(control.mode, m, canvas).to(backend.device) for m in maps}
        found = where(chosen, tuple(prepared[id(m)] for m in maps))
        for row in members:
            if control.mode == "bias":
                row.biases.append(TokenBias(tuple(columns), found, scale))
            elif bool(maps[0].any()):
                row.shifts.append(TokenShift(tuple(columns), found, scale))


def _canvas(control: InjectMap, size: tuple[int, int]) -> Tensor:
    """[H, W]."""
    if control.box is not None:
        return box_mask("InjectMap.box", control.box, size)
    return read_mask("InjectMap.map", control.map, size)


def _prepare(mode: str, level: Tensor, canvas: Tensor) -> Tensor:
    if mode == "mass":
        return level / level.sum().clamp(min=torch.finfo(level.dtype).tiny)
    lifted = FLOOR + (1.0 - FLOOR) * level
    return torch.log(lifted / (FLOOR + (1.0 - FLOOR) * canvas.mean()))
