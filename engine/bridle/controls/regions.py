"""Regions: prompts for parts of the image, inside cross-attention or as denoised images of their own.

attention (attention couple, controls.md 15.4): with masks m_r, weights w_r, coverage c = min(1, sum m_r) and the base
prompt's ratio b, the text's output at a position is (1 - (1 - b) c) o_base + (1 - b) c sum_r (w_r m_r / sum w m) o_r.
Masks are averaged over the cells of every level.

latent (MultiDiffusion, arXiv 2302.08113, region_based.py): every region is denoised with its own prompts, and predictions are
averaged with the masks, cut at 0.5 and taken at the first pixel of each latent cell. The base prompt has the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.controls.site_maps import area_sites, on_device
from bridle.lowering import RowPlan, SegmentPlan, by_window
from bridle.masks import box_mask, check_covers, nearest_latent, normalise, polygon_mask, read_mask
from bridle.region import Region
from bridle.rows import KV

EncodeRow = Callable[[int, bool], RowPlan]
"""The plain row of the prompt (True) or negative prompt (False) of the region with that index."""


def check(backend: ReferenceBackend, regions: Sequence[Region], mode: str, size: tuple[int, int]) -> None:
    """Raises RequestError for regions that vanish at this size."""
    if mode == "latent":
        latent_masks(backend, regions, size)
        return
    for index, region in enumerate(regions):
        region_mask(region, index, size)


def region_mask(region: Region, index: int, size: tuple[int, int]) -> Tensor:
    """[H, W] in [0, 1]."""
    if region.box is not None:
        return box_mask(f"regions[{index}].box", region.box, size)
    if region.polygon is not None:
        return polygon_mask(f"regions[{index}].polygon", region.polygon, size)
    return read_mask(f"regions[{index}].mask", region.mask, size)


def lower_attention(
    backend: ReferenceBackend,
    regions: Sequence[Region],
    base_ratio: float,
    rows: Sequence[RowPlan],
    encode: EncodeRow,
    steps: int,
    size: tuple[int, int],
) -> None:
    """Adds a segment per region to the conditional rows, and to the others where a region has a negative prompt."""
    base, shares = _shares(torch.stack([region_mask(r, i, size) for i, r in enumerate(regions)]), regions, base_ratio)
    conditional = [encode(index, True).kv for index in range(len(regions))]
    negatives = [
        None if region.negative_prompt is None else encode(index, False).kv for index, region in enumerate(regions)
    ]
    config, factor = backend.model.unet.config, backend.model.vae.config.scale
    acting = [row for row in rows if row.conditional or any(kv is not None for kv in negatives)]
    for window, members in by_window(acting).items():
        base_maps, *maps = (
            on_device(area_sites(canvas, window, factor, config), backend.device) for canvas in (base, *shares)
        )
        for row in members:
            row.weights = base_maps
            _add_segments(row, conditional if row.conditional else negatives, maps, steps)


def _add_segments(
    row: RowPlan, contexts: Sequence[tuple[KV, ...] | None], maps: Sequence[tuple[Tensor, ...]], steps: int
) -> None:
    always = np.ones(steps, np.float32)
    for kv, weights in zip(contexts, maps, strict=True):
        row.segments.append(SegmentPlan(row.kv if kv is None else kv, always, weights))


def _shares(masks: Tensor, regions: Sequence[Region], base_ratio: float) -> tuple[Tensor, Tensor]:
    """Of the base prompt [H, W] and of every region [P, H, W]; they add up to one everywhere."""
    covered = (1.0 - base_ratio) * masks.sum(0).clamp(max=1.0)
    weighted = masks * torch.tensor([region.weight for region in regions])[:, None, None]
    return 1.0 - covered, covered * normalise(weighted)


def latent_rows(
    backend: ReferenceBackend,
    regions: Sequence[Region],
    guidance_scale: float,
    rows: Sequence[RowPlan],
    encode: EncodeRow,
    size: tuple[int, int],
) -> list[RowPlan]:
    """The rows of the base prompt and of every region, with `blend` [h, w] not yet divided by their sum."""
    masks = latent_masks(backend, regions, size)
    rest = latent_rest(masks)
    found = [replace(row, blend=rest) for row in rows]
    for index, (region, mask) in enumerate(zip(regions, masks, strict=True)):
        scale = guidance_scale if region.guidance_scale is None else region.guidance_scale
        blend = mask * region.weight
        if scale > 1.0:
            found.append(replace(encode(index, False), region=index, coefficient=1.0 - scale, blend=blend))
        coefficient = scale if scale > 1.0 else 1.0
        found.append(replace(encode(index, True), region=index, coefficient=coefficient, blend=blend))
    return found


def latent_masks(backend: ReferenceBackend, regions: Sequence[Region], size: tuple[int, int]) -> list[Tensor]:
    """[h, w] of 0 and 1 for every region."""
    factor = backend.model.vae.config.scale
    return [_latent_mask(region_mask(r, i, size), i, factor) for i, r in enumerate(regions)]


def latent_rest(masks: Sequence[Tensor]) -> Tensor:
    """[h, w] of 0 and 1: what `latent_masks` leave to the request's own prompt."""
    return (1.0 - torch.stack(list(masks)).sum(0)).clamp(min=0.0)


def _latent_mask(canvas: Tensor, index: int, factor: int) -> Tensor:
    return check_covers(f"regions[{index}]", (nearest_latent(canvas, factor) >= 0.5).float())
