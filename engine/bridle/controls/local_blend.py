"""Prompt-to-prompt's local blend (arXiv 2208.01626, section 3.2): where the blend words look, the edit; elsewhere the source.

Maps of the words are summed over layers, heads and all steps so far, after the edit. The blend follows each solver step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle.networks.trunk import Site

THRESHOLD = 0.3
_QUARTER = 2


def blend_level(sites: Sequence[Site]) -> int:
    """The level whose maps are used: a quarter of the latent's sides (16x16 at 512 pixels), all its sites together.

    A U-Net without attention there outside its middle block gives the coarsest finer level that has it, as the official
    code does with small latents. sites: `attention_sites` of a U-Net, at least one.
    """
    outside = {site.level for site in sites if not site.name.startswith("mid_block")}
    levels = outside or {site.level for site in sites}
    return max((level for level in levels if level <= _QUARTER), default=min(levels))


def blend_ratio(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., H, W] in [0, 1]: how much the words look at each latent cell, relative to where they look most.

    maps: [..., C, h, w] >= 0, one per token of the blend words, on any scale. size: (H, W) of the latent. The sum over
    tokens is spread by a 3x3 maximum, enlarged to nearest neighbours and divided by its largest value; zero stays zero.
    """
    total = maps.sum(-3)
    planes = total.reshape(-1, 1, *total.shape[-2:])
    spread = F.interpolate(F.max_pool2d(planes, 3, stride=1, padding=1), size, mode="nearest")
    largest = spread.amax((-2, -1), keepdim=True)
    ratio = spread / torch.where(largest > 0, largest, torch.ones_like(largest))
    return ratio.reshape(*total.shape[:-2], *size)


def blend_mask(source: Tensor, edit: Tensor, size: tuple[int, int], threshold: float = THRESHOLD) -> Tensor:
    """[..., H, W] float32, 1 where the words of the source or of the edited prompt look, else 0.

    source, edit: [..., C, h, w] maps of each prompt's blend words in its own row; C may differ. size: (H, W) of the
    latent. threshold: see `blend_ratio`; a cell must be above it.
    """
    inside = (blend_ratio(source, size) > threshold) | (blend_ratio(edit, size) > threshold)
    return inside.float()


def blend(source: Tensor, edit: Tensor, mask: Tensor) -> Tensor:
    """`source + mask * (edit - source)`: to the bit the edit where the mask is 1, the source where it is 0.

    source, edit: latents [..., C, H, W]. mask: [..., H, W] in [0, 1].
    """
    return torch.lerp(source, edit, mask[..., None, :, :].to(source.dtype))
