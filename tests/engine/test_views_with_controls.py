"""Views together with picture controls against the naive loop: every window gets its own piece of each picture."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionPanoramaPipeline, T2IAdapter
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from runs import GUIDANCE, NEGATIVE, PROMPT, SEED, latents, picture, rel_l2
from torch import Tensor

import bridle

TOLERANCE = 1e-4
STEPS, WINDOW, STRIDE = 6, 64, 32
WIDTH, HEIGHT = 160, 96
WIDE = picture(4, WIDTH, HEIGHT)

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels, of one window."""
Conditions = Callable[[Box, Tensor, Tensor, Tensor], Mapping[str, Any]]
"""(window, inputs [2, 4, h, w], time, text [2, 77, D]) -> further arguments of the U-Net."""


def naive_panorama(pipeline: DiffusionPipeline, conditions: Conditions) -> Tensor:
    """[1, 4, H/8, W/8]: the mean of the steps of all windows, in every step."""
    arguments = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    text = torch.cat(pipeline.encode_prompt(PROMPT, negative_prompt=NEGATIVE, **arguments)[::-1])
    shape, generator = (1, 4, HEIGHT // 8, WIDTH // 8), torch.Generator().manual_seed(SEED)
    pipeline.scheduler.set_timesteps(STEPS)
    latent = torch.randn(shape, generator=generator) * pipeline.scheduler.init_noise_sigma
    views = pipeline.get_views(HEIGHT, WIDTH, window_size=WINDOW // 8, stride=STRIDE // 8)
    assert len(views) == 8
    for time in pipeline.scheduler.timesteps:
        value, count = torch.zeros(shape), torch.zeros(shape)
        for top, bottom, left, right in views:
            here = (..., slice(top, bottom), slice(left, right))
            inputs = pipeline.scheduler.scale_model_input(latent[here].repeat(2, 1, 1, 1), time)
            extra = conditions((8 * left, 8 * top, 8 * right, 8 * bottom), inputs, time, text)
            with torch.no_grad():
                without, with_text = pipeline.unet(inputs, time, text, **extra).sample.chunk(2)
            output = without + GUIDANCE * (with_text - without)
            value[here] += pipeline.scheduler.step(output, time, latent[here]).prev_sample
            count[here] += 1
        latent = value / count
    return latent


def piece(image: Image.Image, box: Box) -> Tensor:
    """[1, 3, H, W] in 0..1 of a window."""
    return torch.from_numpy(np.asarray(image.crop(box)) / np.float32(255)).permute(2, 0, 1)[None]


def controlnet(folder: Path, mask: Image.Image | None) -> Conditions:
    network = ControlNetModel.from_pretrained(folder / "controlnet")

    def conditions(box: Box, inputs: Tensor, time: Tensor, text: Tensor) -> Mapping[str, Any]:
        with torch.no_grad():
            down, middle = network(inputs, time, text, piece(WIDE, box), 0.8, return_dict=False)
        if mask is not None:
            cut = torch.from_numpy(np.asarray(mask.crop(box)) / np.float32(255))[None, None]
            down, middle = [masked(x, cut) for x in down], masked(middle, cut)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    return conditions


def masked(residual: Tensor, mask: Tensor) -> Tensor:
    """Times the mean of the mask over the pixels of each cell."""
    return residual * torch.nn.functional.adaptive_avg_pool2d(mask, residual.shape[-2:])


def adapter(folder: Path) -> Conditions:
    network = T2IAdapter.from_pretrained(folder / "t2i-adapter")

    def conditions(box: Box, inputs: Tensor, time: Tensor, text: Tensor) -> Mapping[str, Any]:
        with torch.no_grad():
            features = network(piece(WIDE, box))
        return {"down_intrablock_additional_residuals": [0.7 * torch.cat([f, f]) for f in features]}

    return conditions


def image_prompt(pipeline: Any, mask: Image.Image) -> Conditions:
    embeds = pipeline.prepare_ip_adapter_image_embeds(picture(2), None, "cpu", 1, True)
    whole = IPAdapterMaskProcessor().preprocess([mask], height=HEIGHT, width=WIDTH)

    def conditions(box: Box, inputs: Tensor, time: Tensor, text: Tensor) -> Mapping[str, Any]:
        left, top, right, bottom = box
        cut = whole[:, :, top:bottom, left:right].reshape(1, 1, bottom - top, right - left)
        return {
            "added_cond_kwargs": {"image_embeds": embeds},
            "cross_attention_kwargs": {"ip_adapter_masks": [cut]},
        }

    return conditions


def half() -> Image.Image:
    """White on the left 88 pixels."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :88] = 255
    return Image.fromarray(mask)


def ours(engine: bridle.Engine, *controls: bridle.ControlNet | bridle.T2IAdapter | bridle.ImagePrompt) -> Tensor:
    views = bridle.Views(window=WINDOW, stride=STRIDE)
    return latents(engine, width=WIDTH, height=HEIGHT, views=views, controls=controls, num_inference_steps=STEPS)


@pytest.fixture
def pipeline(map_folder: Path) -> Any:
    return StableDiffusionPanoramaPipeline.from_pretrained(map_folder)


def test_the_naive_loop_without_controls(pipeline: Any, map_engine: bridle.Engine) -> None:
    assert rel_l2(ours(map_engine), naive_panorama(pipeline, lambda *_: {})) <= TOLERANCE


@pytest.mark.parametrize("mask", [None, half()], ids=["everywhere", "masked"])
def test_controlnet(pipeline: Any, map_folder: Path, map_engine: bridle.Engine, mask: Image.Image | None) -> None:
    wanted = naive_panorama(pipeline, controlnet(map_folder, mask))
    got = ours(map_engine, bridle.ControlNet("controlnet", WIDE, scale=0.8, mask=mask))
    assert rel_l2(got, wanted) <= TOLERANCE
    assert rel_l2(ours(map_engine), wanted) > 1e-2


def test_t2i_adapter(pipeline: Any, map_folder: Path, map_engine: bridle.Engine) -> None:
    wanted = naive_panorama(pipeline, adapter(map_folder))
    assert rel_l2(ours(map_engine, bridle.T2IAdapter("t2i-adapter", WIDE, scale=0.7)), wanted) <= TOLERANCE
    assert rel_l2(ours(map_engine), wanted) > 1e-2


def test_image_prompt_with_a_mask(pipeline: Any, map_folder: Path, map_engine: bridle.Engine) -> None:
    pipeline.load_ip_adapter(str(map_folder), subfolder="ip-adapter", weight_name="ip-adapter.safetensors")
    pipeline.set_ip_adapter_scale(0.9)
    wanted = naive_panorama(pipeline, image_prompt(pipeline, half()))
    adapter_file = map_folder / "ip-adapter" / "ip-adapter.safetensors"
    prompt = bridle.ImagePrompt(adapter_file, picture(2), scale=0.9, mask=half())
    assert rel_l2(ours(map_engine, prompt), wanted) <= TOLERANCE
    assert rel_l2(ours(map_engine, bridle.ImagePrompt(adapter_file, picture(2), scale=0.9)), wanted) > 1e-3
    assert rel_l2(ours(map_engine), wanted) > 1e-2
