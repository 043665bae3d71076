"""A network on overlapping tiles of its input, so that memory does not grow with the image.

Each tile is computed alone; where two overlap, the result crosses over linearly from the earlier to the later. The
quarter overlap and the ramp are those of diffusers' tiled mode, so the results agree.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 0.25
"""Part of a tile's side that it shares with the next one."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sides and distances in pixels. tile: input side of a tile. step: distance of two tiles in the input.

    blend: width of the cross-over in the output. keep: side of a tile's output that remains, measured from its corner.
    """

    tile: int
    step: int
    blend: int
    keep: int


def quarter_overlap(input_side: int, output_side: int) -> Tiling:
    """Tiles of `input_side` whose results have `output_side`."""
    blend = int(output_side * OVERLAP)
    return Tiling(input_side, int(input_side * (1 - OVERLAP)), blend, output_side - blend)


def run_tiles(x: Tensor, tiling: Tiling, apply: Callable[[Tensor], Tensor]) -> Tensor:
    """`apply` on every tile of x [R, C, h, w], joined. Keeps one row of tiles at a time."""
    if max(x.shape[-2:]) <= tiling.tile:
        return apply(x)
    above: list[Tensor] = []
    bands = []
    for top in range(0, x.shape[-2], tiling.step):
        corners = range(0, x.shape[-1], tiling.step)
        band = [apply(x[..., top : top + tiling.tile, left : left + tiling.tile]) for left in corners]
        for index, tile in enumerate(band):
            if above:
                _cross_over(above[index], tile, -2, tiling.blend)
            if index:
                _cross_over(band[index - 1], tile, -1, tiling.blend)
        bands.append(torch.cat([tile[..., : tiling.keep, : tiling.keep] for tile in band], -1))
        above = band
    return torch.cat(bands, -2)


def _cross_over(earlier: Tensor, later: Tensor, dim: int, blend: int) -> None:
    """Overwrites the first `blend` lines of `later` with a ramp from the last lines of `earlier` to its own."""
    count = min(earlier.shape[dim], later.shape[dim], blend)
    ramp = torch.arange(count, device=later.device, dtype=torch.float32) / count
    ramp = (ramp[:, None] if dim == -2 else ramp).to(later.dtype)
    head = later.narrow(dim, 0, count)
    tail = earlier.narrow(dim, earlier.shape[dim] - count, count)
    head.copy_(tail * (1 - ramp) + head * ramp)
