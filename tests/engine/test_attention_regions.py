"""Attention regions against a processor that attends to every prompt and adds the outputs, at a size with odd levels."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPanoramaPipeline
from diffusers.models.attention_processor import Attention
from map_processors import PROMPT, MapProcessor, cell_means, heads, level_of, with_processors
from runs import NEGATIVE, diffusers_latents, latents, rel_l2
from torch import Tensor

import bridle

TOLERANCE = 1e-4
HEIGHT, WIDTH = 104, 160
CANVAS: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
"""Levels of 13 x 20, 7 x 10, 4 x 5 and 2 x 3 cells."""


def box_pixels(x0: float, y0: float, x1: float, y1: float) -> Tensor:
    """Pixels whose centre is inside."""
    y, x = (torch.arange(HEIGHT) + 0.5) / HEIGHT, (torch.arange(WIDTH) + 0.5) / WIDTH
    return (((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))).float()


def ramp() -> np.ndarray:
    """Rises from the left to the right."""
    return np.tile(np.linspace(0.0, 1.0, WIDTH, dtype=np.float32), (HEIGHT, 1))


WINDOW, STRIDE = 104, 40
BOX = (0.3, 0.2, 0.71, 1.0)
REGIONS = [
    bridle.Region("a green star", BOX, weight=2.0, negative_prompt="dull"),
    bridle.Region("a hat", mask=ramp()),
]
RATIO = 0.3


def shares(ratio: float = RATIO) -> list[Tensor]:
    """[H, W]: of the base prompt, the star and the hat."""
    star, hat = box_pixels(*BOX), torch.from_numpy(ramp())
    covered = (1.0 - ratio) * (star + hat).clamp(max=1.0)
    weighted = 2.0 * star + hat
    parts = [torch.where(weighted > 0, covered * part / weighted, 0.0) for part in (2.0 * star, hat)]
    return [1.0 - covered, *parts]


Cut = Callable[[Tensor], Tensor]
"""The part [H', W'] of a map [H, W] that a view sees."""


class RegionProcessor(MapProcessor):
    """The output of the text and of every region, each with its share. contexts: per region [2, L, D].

    views: what the calls of one step see, one after another.
    """

    def __init__(
        self, name: str, levels: int, contexts: Sequence[Tensor], ratio: float, views: Sequence[Cut] = (lambda m: m,)
    ) -> None:
        super().__init__(name)
        self.contexts, side = contexts, 8 * 2 ** level_of(name, levels)
        self.views = [[cell_means(cut(share), side) for share in shares(ratio)] for cut in views]

    def add(self, attn: Attention, q: Tensor, out: Tensor) -> Tensor:
        if not self.is_cross:
            return out
        base, *others = self.views[self.step % len(self.views)]
        total = base[:, None] * out
        for context, share in zip(self.contexts, others, strict=True):
            k, v = heads(attn, attn.to_k(context)), heads(attn, attn.to_v(context))
            total = total + share[:, None] * ((attn.scale * q @ k.transpose(-1, -2)).softmax(-1) @ v)
        return total


def encoded(pipeline: DiffusionPipeline, negative: str, positive: str) -> Tensor:
    """[2, L, D]."""
    found = pipeline.encode_prompt(
        prompt=positive,
        negative_prompt=negative,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
    )
    return torch.cat([found[1], found[0]])


@pytest.mark.parametrize("ratio", [RATIO, 0.0])
@pytest.mark.parametrize("arch", ["tiny", "tiny-xl"])
def test_regions(
    arch: str,
    ratio: float,
    folder: Path,
    xl_folder: Path,
    engine: bridle.Engine,
    xl_engine: bridle.Engine,
) -> None:
    own, runner = (folder, engine) if arch == "tiny" else (xl_folder, xl_engine)
    pipeline = DiffusionPipeline.from_pretrained(own)
    with torch.no_grad():
        contexts = [encoded(pipeline, "dull", "a green star"), encoded(pipeline, NEGATIVE, "a hat")]
    levels = len(pipeline.unet.down_blocks)
    with_processors(pipeline, partial(RegionProcessor, levels=levels, contexts=contexts, ratio=ratio))
    theirs = diffusers_latents(pipeline, prompt=PROMPT, **CANVAS)
    ours = partial(latents, runner, prompt=PROMPT, base_ratio=ratio, **CANVAS)
    assert rel_l2(ours(regions=REGIONS), theirs) <= TOLERANCE
    assert rel_l2(ours(), theirs) > 1e-2


def wrapped(left: int, width: int) -> Cut:
    """Columns that go on at the left edge where the map ends."""
    return lambda pixels: pixels[:, torch.arange(left, left + width) % pixels.shape[1]]


def test_regions_in_circular_views(folder: Path, engine: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every view sees its own part of the regions."""
    pipeline = StableDiffusionPanoramaPipeline.from_pretrained(folder)
    windows = partial(pipeline.get_views, window_size=WINDOW // 8, stride=STRIDE // 8)
    monkeypatch.setattr(pipeline, "get_views", windows)
    with torch.no_grad():
        contexts = [encoded(pipeline, "dull", "a green star"), encoded(pipeline, NEGATIVE, "a hat")]
    parts = [wrapped(left, WINDOW) for left in range(0, WIDTH, STRIDE)]
    with_processors(pipeline, partial(RegionProcessor, levels=4, contexts=contexts, ratio=RATIO, views=parts))
    theirs = diffusers_latents(pipeline, prompt=PROMPT, circular_padding=True, num_inference_steps=10, **CANVAS)
    views = bridle.Views(WINDOW, STRIDE, circular=True)
    ours = partial(latents, engine, prompt=PROMPT, base_ratio=RATIO, views=views, num_inference_steps=10, **CANVAS)
    assert rel_l2(ours(regions=REGIONS), theirs) <= TOLERANCE
    assert rel_l2(ours(), theirs) > 1e-2


def test_every_part_of_a_region_counts(engine: bridle.Engine) -> None:
    """What the comparison would not see otherwise."""
    ours = partial(latents, engine, prompt=PROMPT, base_ratio=RATIO, **CANVAS)
    whole = ours(regions=REGIONS)
    without_weight = [bridle.Region("a green star", BOX, negative_prompt="dull"), REGIONS[1]]
    without_negative = [bridle.Region("a green star", BOX, weight=2.0), REGIONS[1]]
    for changed in (without_weight, without_negative, REGIONS[:1]):
        assert rel_l2(ours(regions=changed), whole) > 3e-3
