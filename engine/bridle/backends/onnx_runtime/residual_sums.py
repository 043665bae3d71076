"""Residuals of a batch of rows as inputs of a U-Net's graph, whose residuals are one tensor for each point."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bridle.networks.configs import EncoderConfig
from bridle.networks.layout import encoder_layout, level_sizes
from bridle.rows import Residual

Size = tuple[int, int]


def point_shapes(config: EncoderConfig, size: Size) -> Mapping[str, tuple[int, int, int]]:
    """(channels, height, width) of what is added at every point of a U-Net on latents of `size`."""
    layout, sizes = encoder_layout(config), level_sizes(size, config.levels)
    levels = [0, *(stage.level + 1 if stage.resample else stage.level for stage in layout.stages)]
    shapes = {}
    for k, (width, level) in enumerate(zip(layout.widths, levels, strict=True)):
        shapes[f"skip.{k}"] = shapes[f"block.{k}"] = (width, *sizes[level])
    return shapes | {"mid": (config.block_out_channels[-1], *sizes[-1])}


def summed(terms: Sequence[Residual], rows: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """[R, C, h, w] float32: what all of `terms` add to each row."""
    total = torch.zeros((rows, *shape), device=device)
    for term in terms:
        change = term.scale.reshape(-1, 1, 1, 1) * term.values.float()
        if term.mask is not None:
            change = change * term.mask
        if term.rows is None:
            total += change
        else:
            total[list(term.rows)] += change
    return total
