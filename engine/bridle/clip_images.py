"""Pictures -> what CLIP's image encoders read: scaled, centre cut, normalised, as transformers' CLIPImageProcessor does."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bridle.pictures import Picture

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of the red, green and blue of CLIP's training images (openai/CLIP, clip/clip.py)."""


def clip_pixels(pictures: Sequence[Picture], side: int) -> Tensor:
    """[B, 3, side, side] float32 of B pictures as `pictures.read_picture` gives them.

    The shorter edge becomes `side` (bicubic, on 8-bit colours), the middle of the longer one is kept. side: the
    encoder's `image_size`.
    """
    return torch.stack([torch.from_numpy(_normalised(_square(_eight_bit(picture), side))) for picture in pictures])


def _eight_bit(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    return Image.fromarray((picture * 255.0).round().astype(np.uint8))


def _square(image: Image.Image, side: int) -> Image.Image:
    shorter = min(image.size)
    width, height = (side * edge // shorter for edge in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + side, top + side))


def _normalised(image: Image.Image) -> NDArray[np.float32]:
    """[3, side, side]."""
    colours = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255.0)
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    normalised: NDArray[np.float32] = (colours - mean) / std
    return normalised
