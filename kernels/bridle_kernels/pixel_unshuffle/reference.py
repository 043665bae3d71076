"""The definition in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """[R, C*factor^2, h/factor, w/factor]; channel c*factor^2 + dy*factor + dx. x: [R, C, h, w].

    Raises ValueError where factor does not divide a side.
    """
    check_sides(x, factor)
    return F.pixel_unshuffle(x, factor)


def check_sides(x: Tensor, factor: int) -> None:
    """Raises ValueError where factor does not divide a side of x [R, C, h, w]."""
    if x.shape[-1] % factor or x.shape[-2] % factor:
        raise ValueError(f"pixel_unshuffle: x is {tuple(x.shape)}, wants sides that are multiples of {factor}")
