"""Masks of regions: from boxes, polygons, arrays and images to the resolutions of the latent and of the attention layers.

A mask is float32 [H, W] in [0, 1] at the size of the image; 1 is inside. A pixel belongs to a box or polygon if its centre
does, so shapes that share an edge share no pixel. Cell i of level l (level 0 is the latent) covers the pixels from i * k up
to (i + 1) * k, with k = factor * 2**l and factor the pixels of a latent cell; the last cell may be cut off by the edge, so
that sizes are those of the U-Net's strided convolutions (`level_sizes`). There is one rule of resizing per use:

- nearest, for latent regions (MultiDiffusion): the value of a cell's first pixel. Masks that divide the image between
  them still do.
- area, for attention regions and injected maps: the mean of a cell's pixels. Masks that add up to one still do.
- bicubic, for IP-Adapter masks: as diffusers' `IPAdapterMaskProcessor.downsample`, which overshoots 0 and 1 at edges.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bridle import field_checks as check
from bridle import pictures
from bridle.errors import LimitError, RequestError
from bridle.networks.layout import level_sizes

MAX_POINTS = 1024
Box = tuple[float, float, float, float]
Polygon = tuple[tuple[float, float], ...]
Size = tuple[int, int]


def read_box(field: str, value: object) -> Box:
    """(x0, y0, x1, y1) in fractions of width and height, x0 < x1 and y0 < y1. Raises RequestError."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        raise RequestError(field, value, "a box (x0, y0, x1, y1) in fractions of width and height")
    x0, y0, x1, y1 = (check.number(f"{field}[{i}]", side, 0.0, 1.0) for i, side in enumerate(value))
    if x0 >= x1 or y0 >= y1:
        raise RequestError(field, (x0, y0, x1, y1), "a box with x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def read_polygon(field: str, value: object) -> Polygon:
    """Three to 1024 corners (x, y) in fractions of width and height. Raises RequestError, or LimitError for more."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 3:
        raise RequestError(field, value, "a list of at least three points (x, y)")
    if len(value) > MAX_POINTS:
        raise LimitError(field, f"{len(value)} points", f"at most {MAX_POINTS}")
    return tuple(_read_point(f"{field}[{i}]", point) for i, point in enumerate(value))


def read_mask(field: str, value: object, size: Size) -> Tensor:
    """[H, W] of a mask as `pictures.read_mask` takes it, stretched to `size` = (H, W) with Lanczos as diffusers does.

    Raises RequestError for anything but one finite plane in [0, 1] (or 0..255 as uint8) and for a mask that is 0 all over.
    """
    own = pictures.read_mask(field, value)
    return check_covers(field, torch.tensor(pictures.fit_mask(own, *size)))


def box_mask(field: str, value: object, size: Size) -> Tensor:
    """[H, W] of a box (see `read_box`) in an image of `size` = (H, W). Raises RequestError."""
    x0, y0, x1, y1 = read_box(field, value)
    mask = torch.zeros(size)
    mask[_first(y0, size[0]) : _first(y1, size[0]), _first(x0, size[1]) : _first(x1, size[1])] = 1.0
    return check_covers(field, mask)


def polygon_mask(field: str, value: object, size: Size) -> Tensor:
    """[H, W] of a polygon (see `read_polygon`) in an image of `size` = (H, W): inside by the even-odd rule.

    Raises RequestError.
    """
    starts = np.array(read_polygon(field, value), dtype=np.float64)
    crossings = np.zeros((size[0], size[1] + 1), dtype=np.int64)
    for start, end in zip(starts, np.roll(starts, -1, axis=0), strict=True):
        _add_crossings(crossings, start, end)
    inside = np.cumsum(crossings, axis=1)[:, :-1] % 2
    return check_covers(field, torch.tensor(inside, dtype=torch.float32))


def check_covers(field: str, mask: Tensor) -> Tensor:
    """The mask itself. Raises RequestError if it is 0 all over, as a small mask may be at a coarse resolution."""
    if not bool((mask > 0).any()):
        raise RequestError(field, "an empty mask", f"a mask above 0 somewhere on a grid of {tuple(mask.shape)} cells")
    return mask


def normalise(masks: Tensor) -> Tensor:
    """Masks [R, H, W] >= 0 divided by their sum over R, so that they add up to one wherever any of them is above 0."""
    total = masks.sum(0)
    return masks / torch.where(total > 0, total, torch.ones_like(total))


def nearest_latent(masks: Tensor, factor: int) -> Tensor:
    """[..., h, w] of masks [..., H, W]: the value of each latent cell's first pixel."""
    return masks[..., ::factor, ::factor]


def area_latent(masks: Tensor, factor: int) -> Tensor:
    """[..., h, w] of masks [..., H, W]: the mean of the pixels that each latent cell covers."""
    planes = masks.reshape(-1, 1, *masks.shape[-2:])
    means = F.avg_pool2d(planes, factor, ceil_mode=True, count_include_pad=False)
    return means.reshape(*masks.shape[:-2], *means.shape[-2:])


def area_levels(masks: Tensor, factor: int, levels: int) -> tuple[Tensor, ...]:
    """The same at every level: [..., h_l, w_l] of masks [..., H, W]."""
    return tuple(area_latent(masks, factor * 2**level) for level in range(levels))


def bicubic_levels(masks: Tensor, factor: int, levels: int) -> tuple[Tensor, ...]:
    """[..., h_l, w_l] of masks [..., H, W] at every level: bicubic without antialiasing, not clamped.

    diffusers derives a level's sides from its number of cells and the aspect ratio. At some sizes that are no multiples of
    the deepest cell it finds other sides than the U-Net has, and its mask is sheared; here the sides are the U-Net's.
    """
    planes = masks.reshape(-1, 1, *masks.shape[-2:])
    latent = (-(-masks.shape[-2] // factor), -(-masks.shape[-1] // factor))
    return tuple(
        F.interpolate(planes, size, mode="bicubic").reshape(*masks.shape[:-2], *size)
        for size in level_sizes(latent, levels)
    )


def _read_point(field: str, value: object) -> tuple[float, float]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise RequestError(field, value, "a point (x, y) in fractions of width and height")
    return check.number(f"{field}[0]", value[0], 0.0, 1.0), check.number(f"{field}[1]", value[1], 0.0, 1.0)


def _first(edge: float, pixels: int) -> int:
    """Index of the first pixel whose centre is at or behind `edge`."""
    return int(np.ceil(edge * pixels - 0.5))


def _add_crossings(crossings: NDArray[np.int64], start: NDArray[np.float64], end: NDArray[np.float64]) -> None:
    """Counts, per pixel row, the first pixel whose centre is at or behind where the edge from start to end crosses it."""
    height, width = crossings.shape[0], crossings.shape[1] - 1
    (x0, y0), (x1, y1) = (start, end) if start[1] <= end[1] else (end, start)
    rows = np.arange(_first(y0, height), _first(y1, height))
    if len(rows) > 0:
        x = x0 + (x1 - x0) * ((rows + 0.5) / height - y0) / (y1 - y0)
        columns = np.ceil(np.clip(x, 0.0, 1.0) * width - 0.5).astype(np.int64)
        crossings[rows, columns] += 1
