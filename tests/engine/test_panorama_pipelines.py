"""Views against diffusers' panorama pipeline: the same windows, averaged in every step."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LMSDiscreteScheduler, StableDiffusionPanoramaPipeline
from runs import diffusers_latents, latents, rel_l2, request

import bridle

TOLERANCE = 1e-4
WINDOW, STRIDE = 64, 32
CANVAS = {"width": 160, "height": 128}
BAND = {"width": 160, "height": 64}
"""One row of windows: diffusers fails on circular canvases of several."""


@pytest.fixture
def pipeline(folder: Path) -> StableDiffusionPanoramaPipeline:
    return StableDiffusionPanoramaPipeline.from_pretrained(folder)


@pytest.fixture
def small_windows(pipeline: StableDiffusionPanoramaPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' windows, which have a fixed side, made smaller."""
    views = partial(pipeline.get_views, window_size=WINDOW // 8, stride=STRIDE // 8)
    monkeypatch.setattr(pipeline, "get_views", views)


def views(circular: bool = False) -> bridle.Views:
    return bridle.Views(window=WINDOW, stride=STRIDE, circular=circular)


def test_its_own_windows(pipeline: StableDiffusionPanoramaPipeline, engine: bridle.Engine) -> None:
    """64 cells every 8 cells; the height is less than a window."""
    canvas = {"width": 64 * 8 + 64, "height": 64}
    theirs = diffusers_latents(pipeline, **canvas)
    ours = latents(engine, views=bridle.Views(window=512), **canvas)
    assert rel_l2(ours, theirs) <= TOLERANCE
    assert rel_l2(latents(engine, **canvas), theirs) > 1e-2


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(("circular", "canvas"), [(False, CANVAS), (True, BAND)])
def test_windows_in_rows_and_columns(
    pipeline: StableDiffusionPanoramaPipeline, engine: bridle.Engine, circular: bool, canvas: Mapping[str, int]
) -> None:
    theirs = diffusers_latents(pipeline, circular_padding=circular, view_batch_size=4, **canvas)
    assert rel_l2(latents(engine, views=views(circular), **canvas), theirs) <= TOLERANCE
    assert rel_l2(latents(engine, views=views(not circular), **canvas), theirs) > 1e-2


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    ("name", "kind"), [("dpm++ 2m", DPMSolverMultistepScheduler), ("LMSDiscreteScheduler", LMSDiscreteScheduler)]
)
def test_one_schedule_for_all_windows(
    pipeline: StableDiffusionPanoramaPipeline, engine: bridle.Engine, name: str, kind: type
) -> None:
    """diffusers keeps the state of a multistep scheduler for every window, Bridle one for the canvas."""
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    theirs = diffusers_latents(pipeline, **BAND)
    assert rel_l2(latents(engine, scheduler=name, views=views(), **BAND), theirs) <= TOLERANCE


@pytest.mark.usefixtures("small_windows")
def test_images_of_their_own_seeds_without_guidance(
    pipeline: StableDiffusionPanoramaPipeline, engine: bridle.Engine
) -> None:
    for seed in (5, 6):
        theirs = diffusers_latents(
            pipeline, generator=torch.Generator().manual_seed(seed), guidance_scale=1.0, num_inference_steps=5, **CANVAS
        )
        ours = latents(engine, num_images=2, guidance_scale=1.0, num_inference_steps=5, views=views(), **CANVAS)
        assert rel_l2(ours[seed - 5], theirs[0]) <= TOLERANCE


@pytest.mark.usefixtures("small_windows")
def test_circular_panoramas_are_decoded_around_their_ends(
    pipeline: StableDiffusionPanoramaPipeline, engine: bridle.Engine
) -> None:
    """In tiles, of the continued canvas as of any other."""
    arguments: Mapping[str, object] = {"output_type": "np", "num_inference_steps": 3, **BAND}
    pipeline.vae.enable_tiling()
    theirs = diffusers_latents(pipeline, circular_padding=True, **arguments)
    result = engine.sample(request(views=views(True), **arguments))
    assert isinstance(result, bridle.Result)
    ours = np.asarray(result.images)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-3
    with torch.no_grad():
        apart = pipeline.vae.decode(result.latents / pipeline.vae.config.scaling_factor).sample
    assert np.abs(ours - pipeline.image_processor.postprocess(apart, output_type="np")).max() > 1e-2
