"""Image prompts against diffusers' pipelines with IP-Adapters: whole runs of 20 steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from runs import diffusers_latents, latents, picture, rel_l2

import bridle
from bridle.new_model import write_new_model

TOLERANCE = 1e-4
FILE = "ip-adapter/ip-adapter.safetensors"
WIDE = {"width": 192, "height": 128}


@dataclass(frozen=True)
class Setup:
    """A model folder with an adapter of one kind, and a second folder with one of another kind for the same model."""

    folder: Path
    other: Path
    engine: bridle.Engine

    @property
    def is_xl(self) -> bool:
        return self.engine.backend.model.architecture == "sdxl"

    def pipeline(self, folders: Sequence[Path], kind: type[DiffusionPipeline] | None = None, **fields: object) -> Any:
        """diffusers' pipeline with the adapters of `folders`."""
        pipeline = (kind or DiffusionPipeline).from_pretrained(self.folder, **fields)
        count = len(folders)
        pipeline.load_ip_adapter(
            [str(folder) for folder in folders],
            subfolder=["ip-adapter"] * count,
            weight_name=["ip-adapter.safetensors"] * count,
        )
        return pipeline

    def prompt(self, image: object, other: bool = False, **fields: object) -> bridle.ImagePrompt:
        """Of either adapter; both read images with the first one's encoder, as in diffusers."""
        folder = self.other if other else self.folder
        encoder = self.folder / "ip-adapter" / "image_encoder"
        return bridle.ImagePrompt(folder / FILE, image, image_encoder=encoder, **fields)


@pytest.fixture(scope="module", params=["tiny base", "tiny-xl plus"])
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    arch, kind = request.param.split()
    root = tmp_path_factory.mktemp("model")
    write_new_model(arch, root / "first", seed=21, controlnet=True, ip_adapter=kind)
    write_new_model(arch, root / "second", seed=22, ip_adapter="plus" if kind == "base" else "base")
    return Setup(root / "first", root / "second", bridle.load(root / "first"))


def half(left: bool, width: int = 192, height: int = 128) -> np.ndarray:
    """1 in a part of the image whose edge is on no cell of the deeper levels."""
    mask = np.zeros((height, width), np.float32)
    mask[:, slice(0, 88) if left else slice(72, width)] = 1.0
    return mask


def mask_tensor(*masks: np.ndarray) -> torch.Tensor:
    """[1, n, H, W], as diffusers takes the masks of one adapter."""
    images = [Image.fromarray((255 * mask).astype(np.uint8)) for mask in masks]
    height, width = masks[0].shape
    return IPAdapterMaskProcessor().preprocess(images, height=height, width=width).transpose(0, 1)


def check(ours: torch.Tensor, theirs: torch.Tensor, *others: torch.Tensor) -> None:
    """Equal, and far from what other runs give."""
    assert rel_l2(ours, theirs) <= TOLERANCE
    for other in others:
        assert rel_l2(other, theirs) > 1e-2


def test_one_picture(setup: Setup) -> None:
    pipeline = setup.pipeline([setup.folder])
    pipeline.set_ip_adapter_scale(0.7)
    theirs = diffusers_latents(pipeline, ip_adapter_image=picture(1))
    ours = latents(setup.engine, controls=[setup.prompt(picture(1), scale=0.7)])
    other = latents(setup.engine, controls=[setup.prompt(picture(2), scale=0.7)])
    check(ours, theirs, latents(setup.engine), other)


def test_two_pictures_share_a_softmax(setup: Setup) -> None:
    pipeline, pictures = setup.pipeline([setup.folder]), [picture(1), picture(2)]
    pipeline.set_ip_adapter_scale(0.9)
    theirs = diffusers_latents(pipeline, ip_adapter_image=[pictures])
    ours = latents(setup.engine, controls=[setup.prompt(pictures, scale=0.9)])
    apart = latents(setup.engine, controls=[setup.prompt(image, scale=0.9) for image in pictures])
    check(ours, theirs, apart)


def test_two_adapters(setup: Setup) -> None:
    pipeline = setup.pipeline([setup.folder, setup.other])
    pipeline.set_ip_adapter_scale([0.7, 0.4])
    pictures = [picture(3), picture(4)]
    theirs = diffusers_latents(pipeline, ip_adapter_image=[[pictures[0]], pictures])
    prompts = [setup.prompt(pictures[0], scale=0.7), setup.prompt(pictures, other=True, scale=0.4)]
    ours = latents(setup.engine, controls=prompts)
    check(ours, theirs, latents(setup.engine, controls=prompts[:1]), latents(setup.engine, controls=prompts[1:]))


def test_masks(setup: Setup) -> None:
    pipeline, pictures = setup.pipeline([setup.folder]), [picture(1), picture(2)]
    pipeline.set_ip_adapter_scale(0.8)
    masks = [half(True), half(False)]
    arguments = {"cross_attention_kwargs": {"ip_adapter_masks": [mask_tensor(*masks)]}, **WIDE}
    theirs = diffusers_latents(pipeline, ip_adapter_image=[pictures], **arguments)
    ours = latents(setup.engine, controls=[setup.prompt(pictures, scale=0.8, mask=masks)], **WIDE)
    swapped = latents(setup.engine, controls=[setup.prompt(pictures, scale=0.8, mask=masks[::-1])], **WIDE)
    check(ours, theirs, swapped)


def test_masks_and_scales_of_each_picture(setup: Setup) -> None:
    """diffusers takes a scale per picture; here those are image prompts of their own."""
    pipeline, pictures = setup.pipeline([setup.folder]), [picture(1), picture(2)]
    pipeline.set_ip_adapter_scale([[0.9, 0.3]])
    masks = [half(True), half(False)]
    arguments = {"cross_attention_kwargs": {"ip_adapter_masks": [mask_tensor(*masks)]}, **WIDE}
    theirs = diffusers_latents(pipeline, ip_adapter_image=[pictures], **arguments)
    settings = zip(pictures, masks, (0.9, 0.3), strict=True)
    prompts = [setup.prompt(image, mask=mask, scale=scale) for image, mask, scale in settings]
    check(latents(setup.engine, controls=prompts, **WIDE), theirs)


def test_two_adapters_with_masks(setup: Setup) -> None:
    pipeline = setup.pipeline([setup.folder, setup.other])
    pipeline.set_ip_adapter_scale([0.7, 0.6])
    masks = [half(True), half(False)]
    arguments = {"cross_attention_kwargs": {"ip_adapter_masks": [mask_tensor(m) for m in masks]}, **WIDE}
    theirs = diffusers_latents(pipeline, ip_adapter_image=[picture(1), picture(2)], **arguments)
    prompts = [
        setup.prompt(picture(1), scale=0.7, mask=masks[0]),
        setup.prompt(picture(2), other=True, scale=0.6, mask=masks[1]),
    ]
    check(latents(setup.engine, controls=prompts, **WIDE), theirs)


SCALES = {
    "sd": [
        {"down": 0.5, "up": {"block_1": [0.0, 1.0, 0.3], "block_3": 0.8}},
        {"mid": 0.9, "down": {"block_0": [0.2, 0.7]}},
        {"up": [0.0, 1.0, 0.5]},
        {"up": {"block_2": [0.6]}, "mid": [0.4]},
    ],
    "xl": [
        {"down": 0.5, "up": {"block_1": [0.0, 1.0, 0.3]}},
        {"mid": 0.9, "down": {"block_2": [0.2, 0.7]}},
        {"up": [0.0, 1.0, 0.5]},
        {"up": {"block_1": [0.6]}, "mid": [0.4]},
    ],
}


@pytest.mark.parametrize("case", range(4))
def test_scales_of_blocks(setup: Setup, case: int) -> None:
    scale = SCALES["xl" if setup.is_xl else "sd"][case]
    pipeline = setup.pipeline([setup.folder])
    pipeline.set_ip_adapter_scale(scale)
    theirs = diffusers_latents(pipeline, ip_adapter_image=picture(1), num_inference_steps=5)
    ours = latents(setup.engine, controls=[setup.prompt(picture(1), scale=scale)], num_inference_steps=5)
    everywhere = latents(setup.engine, controls=[setup.prompt(picture(1))], num_inference_steps=5)
    check(ours, theirs, everywhere)


def test_beside_a_controlnet(setup: Setup) -> None:
    """The ControlNet's own cross-attention reads the text alone."""
    net = ControlNetModel.from_pretrained(setup.folder / "controlnet")
    kind = StableDiffusionXLControlNetPipeline if setup.is_xl else StableDiffusionControlNetPipeline
    pipeline = setup.pipeline([setup.folder], kind, controlnet=net)
    pipeline.set_ip_adapter_scale(0.6)
    theirs = diffusers_latents(
        pipeline, image=picture(5), ip_adapter_image=picture(1), controlnet_conditioning_scale=0.7
    )
    net_control = bridle.ControlNet("controlnet", picture(5), scale=0.7)
    ours = latents(setup.engine, controls=[net_control, setup.prompt(picture(1), scale=0.6)])
    check(ours, theirs, latents(setup.engine, controls=[net_control]))


def test_without_guidance(setup: Setup) -> None:
    pipeline = setup.pipeline([setup.folder])
    theirs = diffusers_latents(pipeline, ip_adapter_image=picture(1), guidance_scale=1.0)
    check(
        latents(setup.engine, controls=[setup.prompt(picture(1))], guidance_scale=1.0),
        theirs,
        latents(setup.engine, guidance_scale=1.0),
    )
