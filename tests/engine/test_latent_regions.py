"""Latent regions against MultiDiffusion written out: one scheduler per view, every prompt in every view."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from naive_regions import NaivePrompt, Window, naive_latents
from runs import GUIDANCE, NEGATIVE, PROMPT, SEED, latents, rel_l2
from torch import Tensor

import bridle
from bridle.rows import Rows

TOLERANCE = 1e-4
HEIGHT, WIDTH = 64, 160
CANVAS: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
WINDOW, STRIDE = 64, 32
WHOLE: list[Window] = [(0, 8, 0, 20)]
PARTS: list[Window] = [(0, 8, left, left + 8) for left in (0, 4, 8, 12)]

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def pipeline(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder)


def cells(pixels: np.ndarray) -> Tensor:
    """[h, w]: the first pixel of each latent cell, 1 from a half on."""
    return torch.from_numpy((pixels[::8, ::8] >= 0.5).astype(np.float32))


def soft_mask() -> np.ndarray:
    """A disc whose edge is soft, in the left of the canvas."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.clip(1.5 - np.hypot(y - 30, x - 40) / 30, 0.0, 1.0).astype(np.float32)


def box_pixels(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Pixels whose centre is inside."""
    y, x = (np.arange(HEIGHT) + 0.5) / HEIGHT, (np.arange(WIDTH) + 0.5) / WIDTH
    inside = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return inside.astype(np.float32)


BOX = (0.2, 0.15, 0.62, 1.0)
REGIONS = [
    bridle.Region("a green star", mask=soft_mask(), weight=2.0, negative_prompt="dull", guidance_scale=3.0),
    bridle.Region("a blue ring", box=BOX, guidance_scale=0.5),
    bridle.Region("a hat", polygon=[(0.1, 0.0), (0.3, 0.0), (0.3, 0.4), (0.1, 0.4)]),
]


def naive_prompts() -> list[NaivePrompt]:
    """The same in the loop's form; they overlap, and the right end has the base prompt alone."""
    masks = [cells(soft_mask()), cells(box_pixels(*BOX)), cells(box_pixels(0.1, 0.0, 0.3, 0.4))]
    base = (1.0 - torch.stack(masks).sum(0)).clamp(min=0.0)
    return [
        NaivePrompt(PROMPT, NEGATIVE, base, guidance=GUIDANCE),
        NaivePrompt("a green star", "dull", masks[0], 2.0, 3.0),
        NaivePrompt("a blue ring", NEGATIVE, masks[1], 1.0, 0.5),
        NaivePrompt("a hat", NEGATIVE, masks[2], 1.0, GUIDANCE),
    ]


def ours(engine: bridle.Engine, regions: Sequence[bridle.Region] = REGIONS, **changes: Any) -> Tensor:
    return latents(engine, regions=regions, region_mode="latent", **CANVAS, **changes)


@pytest.mark.parametrize("windows", [WHOLE, PARTS], ids=["whole", "views"])
def test_every_region_and_view(pipeline: StableDiffusionPipeline, engine: bridle.Engine, windows: list[Window]) -> None:
    views = bridle.Views(WINDOW, STRIDE) if windows is PARTS else None
    theirs = naive_latents(pipeline, naive_prompts(), windows, steps=20, bootstrapping=4, seed=SEED)
    assert rel_l2(ours(engine, views=views, bootstrapping_steps=4), theirs) <= TOLERANCE
    assert rel_l2(ours(engine, views=views, bootstrapping_steps=0), theirs) > 1e-2


@pytest.mark.parametrize("bootstrapping", [0, 8])
def test_bootstrapping_off_and_longer_than_the_schedule(
    pipeline: StableDiffusionPipeline, engine: bridle.Engine, bootstrapping: int
) -> None:
    theirs = naive_latents(pipeline, naive_prompts(), PARTS, steps=5, bootstrapping=bootstrapping, seed=SEED)
    got = ours(engine, views=bridle.Views(WINDOW, STRIDE), bootstrapping_steps=bootstrapping, num_inference_steps=5)
    assert rel_l2(got, theirs) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "kind"), [("dpm++ 2m", DPMSolverMultistepScheduler), ("EulerDiscreteScheduler", EulerDiscreteScheduler)]
)
def test_one_schedule_for_all(pipeline: StableDiffusionPipeline, engine: bridle.Engine, name: str, kind: Any) -> None:
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    theirs = naive_latents(pipeline, naive_prompts(), PARTS, steps=8, bootstrapping=3, seed=SEED)
    views = bridle.Views(WINDOW, STRIDE)
    got = ours(engine, views=views, bootstrapping_steps=3, num_inference_steps=8, scheduler=name)
    assert rel_l2(got, theirs) <= TOLERANCE


def test_prompts_of_xl(xl_folder: Path, xl_engine: bridle.Engine) -> None:
    """Every prompt has its own pooled text; the sizes are the canvas's."""
    theirs = naive_latents(
        DiffusionPipeline.from_pretrained(xl_folder), naive_prompts(), PARTS, steps=8, bootstrapping=3, seed=SEED
    )
    got = ours(xl_engine, views=bridle.Views(WINDOW, STRIDE), bootstrapping_steps=3, num_inference_steps=8)
    assert rel_l2(got, theirs) <= TOLERANCE


def test_two_regions_of_one_prompt(pipeline: StableDiffusionPipeline, engine: bridle.Engine) -> None:
    """They are told apart by their masks, negative prompts and guidance; the rest has none."""
    masks = [box_pixels(0.0, 0.0, 0.3, 1.0), box_pixels(0.3, 0.0, 0.8, 1.0)]
    regions = [
        bridle.Region("a hat", mask=masks[0], guidance_scale=4.0),
        bridle.Region("a hat", mask=masks[1], negative_prompt="dull", guidance_scale=3.0),
    ]
    prompts = [
        NaivePrompt(PROMPT, NEGATIVE, cells(box_pixels(0.8, 0.0, 1.0, 1.0)), guidance=1.0),
        NaivePrompt("a hat", NEGATIVE, cells(masks[0]), guidance=4.0),
        NaivePrompt("a hat", "dull", cells(masks[1]), guidance=3.0),
    ]
    theirs = naive_latents(pipeline, prompts, WHOLE, steps=5, bootstrapping=2, seed=SEED)
    got = ours(engine, regions, bootstrapping_steps=2, num_inference_steps=5, guidance_scale=1.0)
    assert rel_l2(got, theirs) <= TOLERANCE
    assert rel_l2(ours(engine, regions, bootstrapping_steps=2, num_inference_steps=5), theirs) > 1e-2


def rows_of_a_step(engine: bridle.Engine, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> int:
    counts: list[int] = []
    evaluate = engine.backend.evaluate

    def counted(rows: Rows) -> Tensor:
        counts.append(len(rows.sample))
        return evaluate(rows)

    with monkeypatch.context() as patch:
        patch.setattr(engine.backend, "evaluate", counted)
        ours(engine, num_inference_steps=1, **changes)
    return sum(counts)


def test_empty_views_are_left_out(engine: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows for every prompt and view that meet; one where there is no guidance."""
    prompts = naive_prompts()
    met = [
        1 if prompt.guidance <= 1.0 else 2
        for prompt in prompts
        for top, bottom, left, right in PARTS
        if prompt.mask[top:bottom, left:right].any()
    ]
    assert len(met) < len(prompts) * len(PARTS)
    assert rows_of_a_step(engine, monkeypatch, views=bridle.Views(WINDOW, STRIDE)) == sum(met)


def test_a_covered_base_prompt_is_left_out(engine: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = [bridle.Region("a hat", box=(0.0, 0.0, 1.0, 1.0))]
    assert rows_of_a_step(engine, monkeypatch, regions=everywhere) == 2
