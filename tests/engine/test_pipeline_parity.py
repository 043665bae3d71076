"""Whole pipelines against diffusers: the same folder, seed and schedule give the same latents."""

from pathlib import Path

import bridle
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tiny_networks import SD1, randomise
from tiny_tokenizer import tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

STEPS = 20
PROMPT, NEGATIVE = "a red circle", "blue"


def rel_l2(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=128,
        layers_per_block=1,
    )
    types = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    unet = UNet2DConditionModel(**SD1, down_block_types=types)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    encoder = CLIPTextModel(text)
    for seed, module in enumerate((vae, unet, encoder)):
        randomise(module, seed)
    StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(path)
    control = ControlNetModel.from_unet(unet)
    randomise(control, 9)
    control.save_pretrained(path / "controlnet-canny")
    return path


@pytest.fixture(scope="session")
def engine(folder: Path) -> bridle.Engine:
    return bridle.load(folder)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def request(**changes: object) -> bridle.Request:
    fields: dict = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "seed": 5,
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
    }
    return bridle.Request(**{**fields, **changes})


def control_image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (128, 128, 3), dtype=np.uint8)


def test_text_to_image(folder: Path, engine: bridle.Engine) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 5.0}
    latents = pipeline(**arguments, generator=generator(5), output_type="latent").images
    pixels = pipeline(**arguments, generator=generator(5), output_type="np").images
    result = engine.sample(request(output_type="np"))
    assert rel_l2(result.latents, latents) <= 1e-3
    assert np.abs(result.images - pixels).max() < 0.01


@pytest.mark.parametrize("guess", [False, True])
def test_controlnet(folder: Path, engine: bridle.Engine, guess: bool) -> None:
    net = ControlNetModel.from_pretrained(folder / "controlnet-canny")
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=net)
    pipeline.set_progress_bar_config(disable=True)
    from PIL import Image

    theirs = pipeline(
        PROMPT,
        image=Image.fromarray(control_image()),
        negative_prompt=NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=generator(5),
        output_type="latent",
        controlnet_conditioning_scale=0.7,
        control_guidance_start=0.1,
        control_guidance_end=0.8,
        guess_mode=guess,
    ).images
    control = bridle.ControlNet("canny", control_image(), scale=0.7, start=0.1, end=0.8, guess_mode=guess)
    ours = engine.sample(request(controls=[control], output_type="latent")).latents
    plain = engine.sample(request(output_type="latent")).latents
    assert rel_l2(ours, theirs) <= 1e-3
    assert rel_l2(ours, plain) > 1e-2


def test_scale_zero_is_the_plain_run(engine: bridle.Engine) -> None:
    control = bridle.ControlNet("canny", control_image(), scale=0.0)
    plain = engine.sample(request(output_type="latent")).latents
    assert torch.equal(engine.sample(request(controls=[control], output_type="latent")).latents, plain)


def test_list_equals_single_requests(engine: bridle.Engine) -> None:
    control = bridle.ControlNet("canny", control_image(), mask=np.eye(128, dtype=bool))
    requests = [
        request(num_inference_steps=4, output_type="latent"),
        request(prompt="a blue star " * 40, seed=8, num_inference_steps=7, scheduler="euler a", output_type="latent"),
        request(num_inference_steps=5, controls=[control], guidance_scale=1.0, output_type="latent"),
    ]
    together = engine.sample(requests)
    for one, result in zip(requests, together, strict=True):
        assert rel_l2(result.latents, engine.sample(one).latents) < 1e-5


def test_image_to_image_and_inpainting_run(engine: bridle.Engine) -> None:
    picture = control_image()
    mask = np.zeros((128, 128), dtype=bool)
    mask[:, 64:] = True
    result = engine.sample(request(image=picture, strength=0.5, num_inference_steps=6))
    painted = engine.sample(request(image=picture, mask_image=mask, num_inference_steps=6, output_type="latent"))
    assert result.images[0].size == (128, 128)
    assert torch.isfinite(painted.latents).all()
