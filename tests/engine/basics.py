"""What tests of runs share and diffusers has no part in: importing it takes seconds."""

import numpy as np
import torch
from PIL import Image


def rel_l2(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Distance relative to the length of the reference."""
    return float((ours - reference).norm() / reference.norm())


def picture(seed: int = 3, width: int = 128, height: int = 128) -> Image.Image:
    """Smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def half_mask(side: int = 128) -> np.ndarray:
    """True in the right half."""
    mask = np.zeros((side, side), dtype=bool)
    mask[:, side // 2 :] = True
    return mask
