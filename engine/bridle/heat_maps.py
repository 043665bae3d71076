"""Where words look: captured attention as one map per word, and as pictures, in the manner of DAAM (arXiv 2210.04885)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MAX_COLUMNS = 4
GAP = 4
_OPACITY = 0.6
_RAMP = np.array(
    [
        (13, 2, 47),
        (52, 0, 84),
        (100, 1, 102),
        (152, 8, 102),
        (198, 44, 88),
        (231, 90, 68),
        (247, 141, 68),
        (249, 192, 114),
        (248, 236, 188),
    ],
    dtype=np.float64,
)
"""sRGB from 0 to 1 in equal steps of perceived lightness (OKLab L from 0.16 to 0.94), violet over red to pale yellow."""


def word_maps(captured: Sequence[Tensor], tokens: Sequence[Sequence[int]], size: tuple[int, int]) -> Tensor:
    """[B, W, H, W'] float32 >= 0: the attention that each of W words gets from each pixel of an image of `size` = (H, W').

    captured: one [B, S, h, w] per level, columns of the map summed over layers, heads and steps. tokens: per word, the
    indices of its columns among the S; their mean is the word's map. Each level is enlarged to the image (bicubic, what
    falls below 0 is 0) and the levels are added.
    """
    levels = []
    for columns in captured:
        words = torch.stack([columns[:, list(indices)].float().mean(1) for indices in tokens], dim=1)
        levels.append(F.interpolate(words, size, mode="bicubic").clamp(min=0.0))
    return torch.stack(levels).sum(0)


def normalise_each(maps: Tensor) -> Tensor:
    """[B, W, H, W'] in [0, 1]: every map divided by its own maximum, for where each word looks; zero stays zero."""
    largest = maps.amax((-2, -1), keepdim=True)
    return maps / torch.where(largest > 0, largest, torch.ones_like(largest))


def overlay(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """The image, mixed with the colours of a map [H, W] in [0, 1] of its size: dark violet 0, pale yellow 1. RGB."""
    if heat.shape != (image.height, image.width):
        raise ValueError(f"overlay: the map is {heat.shape}, the image {(image.height, image.width)}")
    return Image.blend(image.convert("RGB"), Image.fromarray(_colours(heat)), _OPACITY)


def sheet(image: Image.Image, maps: Mapping[str, NDArray[np.float32]]) -> Image.Image:
    """One `overlay` per word with the word below it, up to four in a row. maps: [H, W] in [0, 1] per word, at least one.

    The captions' font is Pillow's own, which draws a box for a letter that it lacks.
    """
    columns = min(len(maps), MAX_COLUMNS)
    text_size = max(10, image.width // 20)
    font = ImageFont.load_default(text_size)
    wide, tall = image.width + GAP, image.height + 2 * text_size
    page = Image.new("RGB", (columns * wide - GAP, -(-len(maps) // columns) * tall), "white")
    draw = ImageDraw.Draw(page)
    for index, (word, heat) in enumerate(maps.items()):
        left, top = (index % columns) * wide, (index // columns) * tall
        page.paste(overlay(image, heat), (left, top))
        middle = (left + image.width / 2, top + image.height + text_size)
        draw.text(middle, _fitted(draw, font, word, image.width), fill="black", font=font, anchor="mm")
    return page


def _colours(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[H, W, 3] of [H, W] in [0, 1]."""
    places = np.linspace(0.0, 1.0, len(_RAMP))
    channels = [np.interp(heat, places, _RAMP[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=2)).astype(np.uint8)


def _fitted(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, word: str, width: int
) -> str:
    """The word on one line, cut short with an ellipsis where it is wider than its picture."""
    text = " ".join(word.split())
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
