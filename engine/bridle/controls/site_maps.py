"""Maps over the image at the positions of each cross-attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.errors import RequestError
from bridle.lowering import Window
from bridle.masks import area_levels
from bridle.networks.configs import UNetConfig
from bridle.networks.unet import Site, attention_sites

BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
"""Short names of the U-Net's parts, and where diffusers' paths of them begin."""


def area_sites(canvas: Tensor, window: Window | None, factor: int, config: UNetConfig) -> tuple[Tensor, ...]:
    """One [N] per site: the mean of a map [H, W] of the canvas in pixels over each cell that a row's window sees.

    factor: pixels of a latent cell. Sites of one level share a tensor.
    """
    seen = canvas if window is None else window.scaled(factor).cut(canvas)
    levels = [level.flatten() for level in area_levels(seen, factor, config.levels)]
    return tuple(levels[site.level] for site in attention_sites(config))


def chosen_sites(config: UNetConfig, layers: Sequence[str] | None, field: str) -> tuple[bool, ...]:
    """Which cross-attentions `layers` names: "down", "mid", "up" or the beginning of a diffusers path; None = all.

    Raises RequestError for a name that no site has.
    """
    sites = attention_sites(config)
    if layers is None:
        return (True,) * len(sites)
    for i, layer in enumerate(layers):
        if not any(_is_in(site, layer) for site in sites):
            known = ", ".join(dict.fromkeys(site.name.split(".attentions")[0] for site in sites))
            raise RequestError(f"{field}[{i}]", layer, f"'down', 'mid', 'up' or a part of {known}")
    return tuple(any(_is_in(site, layer) for layer in layers) for site in sites)


def _is_in(site: Site, layer: str) -> bool:
    path = BLOCKS.get(layer, layer)
    return site.name == path or site.name.startswith(f"{path}.") or (layer in BLOCKS and site.name.startswith(path))


def where(chosen: Sequence[bool], maps: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The maps of the chosen sites."""
    return tuple(m if take else None for take, m in zip(chosen, maps, strict=True))


def on_device(maps: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """The maps there; what was one tensor stays one."""
    moved = {id(m): m.to(device) for m in maps}
    return tuple(moved[id(m)] for m in maps)
