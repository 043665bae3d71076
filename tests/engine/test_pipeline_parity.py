"""Whole pipelines against diffusers: the same folder, seed and schedule give the same latents after 20 steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UniPCMultistepScheduler,
)
from PIL import Image
from runs import PROMPT, diffusers_latents, half_mask, latents, picture, rel_l2, request, with_input_channels

import bridle

TOLERANCE = 1e-3


def test_text_to_image(folder: Path, engine: bridle.Engine) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert rel_l2(latents(engine), diffusers_latents(pipeline)) <= TOLERANCE
    pixels = diffusers_latents(pipeline, output_type="np")
    result = engine.sample(request(output_type="np"))
    assert np.abs(result.images - pixels).max() < 0.01


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("dpm++ 2m karras", lambda c: DPMSolverMultistepScheduler.from_config(c, use_karras_sigmas=True)),
        ("euler a", EulerAncestralDiscreteScheduler.from_config),
        ("heun", HeunDiscreteScheduler.from_config),
        ("UniPCMultistepScheduler", UniPCMultistepScheduler.from_config),
    ],
)
def test_schedulers(folder: Path, engine: bridle.Engine, name: str, scheduler: object) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = scheduler(pipeline.scheduler.config)
    assert rel_l2(latents(engine, scheduler=name), diffusers_latents(pipeline)) <= TOLERANCE


def test_size_and_guidance_off(folder: Path, engine: bridle.Engine) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    theirs = diffusers_latents(pipeline, width=96, height=160, guidance_scale=1.0)
    assert rel_l2(latents(engine, width=96, height=160, guidance_scale=1.0), theirs) <= TOLERANCE


def test_clip_skip(folder: Path, engine: bridle.Engine) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    ids = pipeline.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states
        skipped = pipeline.text_encoder.final_layer_norm(states[-2])
    theirs = diffusers_latents(pipeline, prompt=None, negative_prompt=None, prompt_embeds=skipped, guidance_scale=1.0)
    assert rel_l2(latents(engine, clip_skip=1, guidance_scale=1.0), theirs) <= TOLERANCE


def test_image_to_image(folder: Path, engine: bridle.Engine) -> None:
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    theirs = diffusers_latents(pipeline, image=picture(), strength=0.6)
    assert rel_l2(latents(engine, image=picture(), strength=0.6), theirs) <= TOLERANCE


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(folder: Path, tmp_path: Path, channels: int, strength: float) -> None:
    own = folder if channels == 4 else with_input_channels(folder, tmp_path / "model", channels)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(own)
    mask = Image.fromarray(half_mask())
    theirs = diffusers_latents(pipeline, image=picture(), mask_image=mask, strength=strength, width=128, height=128)
    ours = latents(bridle.load(own), image=picture(), mask_image=half_mask(), strength=strength)
    assert rel_l2(ours, theirs) <= TOLERANCE


def test_depth(folder: Path, tmp_path: Path) -> None:
    own = with_input_channels(folder, tmp_path / "model", 5)
    base = StableDiffusionPipeline.from_pretrained(own)
    pipeline = StableDiffusionDepth2ImgPipeline(
        base.vae, base.text_encoder, base.tokenizer, base.unet, base.scheduler, None, None
    )
    depth = np.random.default_rng(0).random((128, 128), dtype=np.float32)
    arguments = {"image": picture(), "strength": 0.7}
    theirs = diffusers_latents(pipeline, depth_map=torch.from_numpy(depth)[None], **arguments)
    assert rel_l2(latents(bridle.load(own), depth_image=depth, **arguments), theirs) <= TOLERANCE


@pytest.mark.parametrize("guess", [False, True])
def test_controlnet(folder: Path, engine: bridle.Engine, guess: bool) -> None:
    net = ControlNetModel.from_pretrained(folder / "controlnet")
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=net)
    window = {"control_guidance_start": 0.1, "control_guidance_end": 0.8}
    theirs = diffusers_latents(pipeline, image=picture(), controlnet_conditioning_scale=0.7, guess_mode=guess, **window)
    control = bridle.ControlNet("controlnet", picture(), scale=0.7, start=0.1, end=0.8, guess_mode=guess)
    assert rel_l2(latents(engine, controls=[control]), theirs) <= TOLERANCE


def test_several_controlnets(folder: Path, engine: bridle.Engine) -> None:
    net = ControlNetModel.from_pretrained(folder / "controlnet")
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=[net, net])
    theirs = diffusers_latents(
        pipeline,
        image=[picture(1), picture(2)],
        controlnet_conditioning_scale=[0.7, 0.4],
        control_guidance_start=[0.0, 0.3],
        control_guidance_end=[0.6, 1.0],
    )
    controls = [
        bridle.ControlNet("controlnet", picture(1), scale=0.7, end=0.6),
        bridle.ControlNet("controlnet", picture(2), scale=0.4, start=0.3),
    ]
    assert rel_l2(latents(engine, controls=controls), theirs) <= TOLERANCE


def test_adapter(folder: Path, engine: bridle.Engine) -> None:
    adapter = T2IAdapter.from_pretrained(folder / "t2i-adapter")
    pipeline = StableDiffusionAdapterPipeline.from_pretrained(folder, adapter=adapter)
    theirs = diffusers_latents(pipeline, image=picture(), adapter_conditioning_scale=0.7, height=128, width=128)
    ours = latents(engine, controls=[bridle.T2IAdapter("t2i-adapter", picture(), scale=0.7)])
    assert rel_l2(ours, theirs) <= TOLERANCE


def test_xl(xl_folder: Path, xl_engine: bridle.Engine) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    sizes = {"original_size": (256, 200), "crops_coords_top_left": (8, 16), "target_size": (128, 96)}
    theirs = diffusers_latents(pipeline, prompt_2="a star", **sizes)
    assert rel_l2(latents(xl_engine, prompt_2="a star", **sizes), theirs) <= TOLERANCE
    unset = diffusers_latents(pipeline, negative_prompt=None)
    assert rel_l2(latents(xl_engine, negative_prompt=None), unset) <= TOLERANCE
    assert rel_l2(latents(xl_engine, negative_prompt=""), unset) > 1e-2


def test_xl_image_to_image(xl_folder: Path, xl_engine: bridle.Engine) -> None:
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(xl_folder)
    theirs = diffusers_latents(pipeline, image=picture(), strength=0.5)
    assert rel_l2(latents(xl_engine, image=picture(), strength=0.5), theirs) <= TOLERANCE


def test_xl_controlnet(xl_folder: Path, xl_engine: bridle.Engine) -> None:
    net = ControlNetModel.from_pretrained(xl_folder / "controlnet")
    pipeline = StableDiffusionXLControlNetPipeline.from_pretrained(xl_folder, controlnet=net)
    theirs = diffusers_latents(pipeline, image=picture(), controlnet_conditioning_scale=0.6)
    ours = latents(xl_engine, controls=[bridle.ControlNet("controlnet", picture(), scale=0.6)])
    assert rel_l2(ours, theirs) <= TOLERANCE


def test_xl_adapter(xl_folder: Path, xl_engine: bridle.Engine) -> None:
    adapter = T2IAdapter.from_pretrained(xl_folder / "t2i-adapter")
    pipeline = StableDiffusionXLAdapterPipeline.from_pretrained(xl_folder, adapter=adapter)
    arguments = {"adapter_conditioning_scale": 0.7, "adapter_conditioning_factor": 0.6}
    theirs = diffusers_latents(pipeline, image=picture(), height=128, width=128, **arguments)
    ours = latents(xl_engine, controls=[bridle.T2IAdapter("t2i-adapter", picture(), scale=0.7, end=0.6)])
    assert rel_l2(ours, theirs) <= TOLERANCE
