"""The definitions in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def average_pool(x: Tensor) -> Tensor:
    """Means of 2x2 blocks: [R, C, ceil(h/2), ceil(w/2)]; a block at an odd edge averages the pixels it has."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


def spatial_mean(x: Tensor) -> Tensor:
    """[R, C, 1, 1] of [R, C, h, w]."""
    return x.mean((2, 3), keepdim=True)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., *size] of [..., h, w] by area averaging, so that masks that add up to one still do."""
    return F.adaptive_avg_pool2d(mask, size)
