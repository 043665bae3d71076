"""Stages three to five: ControlNets for edges and colour segmentation, a T2I-Adapter for sketches, on the frozen U-Net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    T2IAdapter,
)
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from denoiser import CHANNELS, Denoiser, NoisyBatches, build_pipeline, half_precision, plain_attention
from scenes import SceneImages
from sheets import save_sheet
from stage import Stage
from world import ByteImage, Scene, ground_truth, outline_of, seeded_scene

HINT_WIDTHS = (16, 24, 48, 96)
LEARNING_RATE = 1e-3

Hint = Callable[[Scene, ByteImage], ByteImage]
"""Scene and its rendering -> control image (SIZE, SIZE, 3) uint8."""


def canny_hint(scene: Scene, picture: ByteImage) -> ByteImage:
    """White edges on black, thresholds 100 and 200, of the colours: some are as bright as their background."""
    edges = cv2.Canny(picture, 100, 200)
    return np.repeat(edges[:, :, None], 3, axis=2).astype(np.uint8)


def segmentation_hint(scene: Scene, picture: ByteImage) -> ByteImage:
    """Every object in its flat colour on black."""
    truth = ground_truth(scene)
    palette = np.array([(0, 0, 0), *truth.palette[1:]], np.uint8)
    flat: ByteImage = palette[truth.labels]
    return flat


def sketch_hint(scene: Scene, picture: ByteImage) -> ByteImage:
    """White object outlines on black, two pixels wide, without any edge of the background."""
    outline = cv2.dilate(outline_of(ground_truth(scene).labels), np.ones((2, 2), np.uint8))
    return np.repeat(outline[:, :, None], 3, axis=2).astype(np.uint8)


HINTS: dict[str, Hint] = {"seg": segmentation_hint, "canny": canny_hint, "sketch": sketch_hint}
"""In the order of their training: flat colours are learned in a few hundred steps, and edges go on from them."""
FOLDERS = {"canny": "controlnet-canny", "seg": "controlnet-seg", "sketch": "t2iadapter-sketch"}


def build_control(name: str, denoiser: Denoiser) -> nn.Module:
    """A ControlNet that starts as the U-Net's encoder, or an adapter."""
    if name == "sketch":
        return T2IAdapter(
            in_channels=3, channels=CHANNELS, num_res_blocks=4, downscale_factor=8, adapter_type="light_adapter"
        )
    network = ControlNetModel.from_unet(denoiser.unet, conditioning_embedding_out_channels=HINT_WIDTHS)
    plain_attention(network)
    return network


def control_stage(
    name: str,
    module: nn.Module,
    denoiser: Denoiser,
    batches: NoisyBatches,
    images: SceneImages,
    autoencoder: AutoencoderKL,
    minutes: float,
    batch: int,
    export: Path,
) -> Stage:
    """Training of one control; its sheet shows hints above samples."""

    def loss(rng: np.random.Generator, share: float) -> Tensor:
        indices, noisy, timesteps, tokens, target = batches.draw(rng, batch)
        hints = to_unit(_hints(name, images, indices), batches.device)
        with half_precision(noisy.device):
            context = denoiser.text_encoder(tokens).last_hidden_state
            residuals = control_residuals(module, noisy, timesteps, context, hints)
            output = denoiser.unet(noisy, timesteps, context, **residuals).sample
        return functional.mse_loss(output.float(), target)

    def show(path: Path) -> None:
        held_out = np.arange(images.count - 8, images.count)
        hints = _hints(name, images, held_out)
        samples = sample(name, module, denoiser, autoencoder, hints)
        save_sheet(path, np.concatenate([hints, samples]), columns=8)
        own = {key: value.detach().clone() for key, value in module.state_dict().items()}
        module.half().save_pretrained(export / FOLDERS[name])
        module.float().load_state_dict(own)

    return Stage(name, minutes, module, loss, show, LEARNING_RATE, ema_decay=0.998, show_every=600.0)


def control_residuals(
    module: nn.Module, noisy: Tensor, timesteps: Tensor, context: Tensor, hints: Tensor
) -> dict[str, object]:
    """What the U-Net takes from a control."""
    if isinstance(module, T2IAdapter):
        return {"down_intrablock_additional_residuals": [feature.clone() for feature in module(hints)]}
    down, middle = module(noisy, timesteps, context, controlnet_cond=hints, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def sample(name: str, module: nn.Module, denoiser: Denoiser, autoencoder: AutoencoderKL, hints: ByteImage) -> ByteImage:
    """Pictures under the control, with a prompt that says nothing of the scene."""
    parts = {k: v for k, v in build_pipeline(autoencoder, denoiser).components.items() if k != "image_encoder"}
    if isinstance(module, T2IAdapter):
        pipeline = StableDiffusionAdapterPipeline(**parts, adapter=module, requires_safety_checker=False)
    else:
        pipeline = StableDiffusionControlNetPipeline(**parts, controlnet=module, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    result = [
        pipeline(
            "a picture of shapes",
            image=Image.fromarray(hint),
            num_inference_steps=20,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        for seed, hint in enumerate(hints)
    ]
    return (np.stack(result) * 255).round().astype(np.uint8)


def to_unit(pixels: ByteImage, device: torch.device) -> Tensor:
    """(batch, height, width, 3) uint8 to (batch, 3, height, width) float32 in 0..1."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255.0


def _hints(name: str, images: SceneImages, indices: npt.NDArray[np.int64]) -> ByteImage:
    hint = HINTS[name]
    return np.stack([hint(seeded_scene(images.first_seed + int(index)), images.pixels[index]) for index in indices])
