"""Stages three to five: ControlNets for edges and colour segmentation, a T2I-Adapter for sketches, on the frozen U-Net."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
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

import workers
from denoiser import CHANNELS, Denoiser, NoisyBatches, build_pipeline, choose_attention, export_half, half_precision
from scenes import SceneImages, drawn_once
from sheets import save_sheet
from stage import Stage
from world import ByteImage, Scene, ground_truth, outline_of, render, seeded_scene

HINT_WIDTHS = (16, 24, 48, 96)
LEARNING_RATE = 1e-3
CAPTION_DROPOUT = 0.5
"""A control must be followed without a caption's help (arXiv 2302.05543, 3.3)."""

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


def build_control(name: str, denoiser: Denoiser) -> ControlNetModel | T2IAdapter:
    """A ControlNet that starts as the U-Net's encoder, or an adapter."""
    if name == "sketch":
        return T2IAdapter(
            in_channels=3, channels=CHANNELS, num_res_blocks=4, downscale_factor=8, adapter_type="light_adapter"
        )
    network = ControlNetModel.from_unet(denoiser.unet, conditioning_embedding_out_channels=HINT_WIDTHS)
    choose_attention(network, denoiser.unet.device)
    return network


def draw_hints(name: str, images: SceneImages) -> ByteImage:
    """Control images of all training scenes, (count, SIZE, SIZE, 3), kept in a file beside theirs."""
    with workers.first_then_others():
        return drawn_once(
            images.path.with_name(f"hints-{name}.u8"), images.count, partial(_hint, name, images.first_seed)
        )


def _hint(name: str, first_seed: int, index: int) -> ByteImage:
    scene = seeded_scene(first_seed + index)
    return HINTS[name](scene, render(scene))


def control_stage(
    name: str,
    module: ControlNetModel | T2IAdapter,
    denoiser: Denoiser,
    batches: NoisyBatches,
    hints: ByteImage,
    autoencoder: AutoencoderKL,
    minutes: float,
    batch: int,
    export: Path,
) -> Stage:
    """Training of one control on the control images of all scenes; its sheet shows hints above samples."""
    all_hints = torch.from_numpy(hints).to(batches.device)

    def loss(rng: np.random.Generator, share: float) -> Tensor:
        indices, noisy, timesteps, tokens, target = batches.draw(batch, CAPTION_DROPOUT)
        with half_precision(noisy.device):
            context = denoiser.text_encoder(tokens).last_hidden_state
            residuals = control_residuals(module, noisy, timesteps, context, to_unit(all_hints[indices]))
            output = denoiser.unet(noisy, timesteps, context, **residuals).sample
        return functional.mse_loss(output.float(), target)

    def show(path: Path) -> None:
        shown = hints[-8:]
        samples = sample(name, module, denoiser, autoencoder, shown)
        save_sheet(path, np.concatenate([shown, samples]), columns=8)
        export_half(module, export / FOLDERS[name])

    return Stage(
        name, minutes, module, loss, show, LEARNING_RATE, batch, repeats=True, ema_decay=0.998, show_every=600.0
    )


def control_residuals(
    module: nn.Module, noisy: Tensor, timesteps: Tensor, context: Tensor, hints: Tensor
) -> dict[str, object]:
    """What the U-Net takes from a control."""
    if isinstance(module, T2IAdapter):
        return {"down_intrablock_additional_residuals": [feature.clone() for feature in module(hints)]}
    down, middle = module(noisy, timesteps, context, controlnet_cond=hints, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def sample(name: str, module: nn.Module, denoiser: Denoiser, autoencoder: AutoencoderKL, hints: ByteImage) -> ByteImage:
    """Pictures under the control alone, without a caption."""
    parts = {k: v for k, v in build_pipeline(autoencoder, denoiser).components.items() if k != "image_encoder"}
    if isinstance(module, T2IAdapter):
        pipeline = StableDiffusionAdapterPipeline(**parts, adapter=module, requires_safety_checker=False)
    else:
        pipeline = StableDiffusionControlNetPipeline(**parts, controlnet=module, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    result = [
        pipeline(
            "",
            image=Image.fromarray(hint),
            num_inference_steps=20,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        for seed, hint in enumerate(hints)
    ]
    return (np.stack(result) * 255).round().astype(np.uint8)


def to_unit(pixels: Tensor) -> Tensor:
    """(batch, height, width, 3) uint8 to (batch, 3, height, width) float32 in 0..1."""
    return pixels.permute(0, 3, 1, 2).float() / 255.0
