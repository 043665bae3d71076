"""Stage one: the autoencoder between pictures and latents an eighth as wide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from scenes import SceneImages, to_bytes
from sheets import save_sheet
from stage import Stage
from torch import Tensor
from torch.nn import functional
from world import SIZE

CHANNELS = (16, 32, 48, 64)
KL_WEIGHT = 3e-4
CROP = 64
CROP_SHARE = 0.7
"""Crops are four times cheaper than pictures; the last part of the budget sees whole pictures."""


def build_autoencoder() -> AutoencoderKL:
    """A small AutoencoderKL with random weights."""
    levels = len(CHANNELS)
    autoencoder = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )
    _quiet_posterior(autoencoder)
    return autoencoder


def _quiet_posterior(autoencoder: AutoencoderKL) -> None:
    """Start with little noise on the latents: with the usual unit variance, colours take thousands of steps to appear."""
    convolution = autoencoder.quant_conv
    half = convolution.out_channels // 2
    with torch.no_grad():
        convolution.weight[half:] = 0.0
        convolution.bias[half:] = -6.0


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the pixels, of their gradients and of two coarser scales."""
    total = functional.l1_loss(output, target)
    for axis in (2, 3):
        total = total + functional.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    for scale in (2, 4):
        total = total + 0.5 * functional.l1_loss(
            functional.avg_pool2d(output, scale), functional.avg_pool2d(target, scale)
        )
    return total


def autoencoder_stage(
    autoencoder: AutoencoderKL, images: SceneImages, minutes: float, batch: int, device: torch.device
) -> Stage:
    """Training of the autoencoder on crops, then on whole pictures."""

    def loss(rng: np.random.Generator, share: float) -> Tensor:
        whole = share > CROP_SHARE
        size = batch if not whole else max(1, batch // 4)
        pictures = images.tensor(rng.integers(images.count, size=size), device)
        if not whole:
            top, left = rng.integers(SIZE - CROP + 1, size=2)
            pictures = pictures[:, :, top : top + CROP, left : left + CROP]
        posterior = autoencoder.encode(pictures).latent_dist
        output = autoencoder.decode(posterior.sample()).sample
        divergence = -0.5 * (1 + posterior.logvar - posterior.mean**2 - posterior.var).mean()
        return reconstruction_loss(output, pictures) + KL_WEIGHT * divergence

    def show(path: Path) -> None:
        pictures = images.tensor(np.arange(16), device)
        output = autoencoder.decode(autoencoder.encode(pictures).latent_dist.mean).sample
        save_sheet(path, np.concatenate([to_bytes(pictures), to_bytes(output)]), columns=8)

    return Stage("autoencoder", minutes, autoencoder, loss, show, learning_rate=2e-3, ema_decay=0.998)


def encode_all(autoencoder: AutoencoderKL, images: SceneImages, path: Path, device: torch.device) -> Tensor:
    """Latents of every training picture, unscaled, (count, 4, SIZE / 8, SIZE / 8) float16, kept in a file."""
    shape = (images.count, 4, SIZE // 8, SIZE // 8)
    if not path.exists():
        latents = np.empty(shape, np.float16)
        for start in range(0, images.count, 64):
            indices: npt.NDArray[np.int64] = np.arange(start, min(start + 64, images.count))
            with torch.no_grad():
                mean = autoencoder.encode(images.tensor(indices, device)).latent_dist.mean
            latents[indices] = mean.half().cpu().numpy()
        np.save(path.with_suffix(".partial.npy"), latents)
        path.with_suffix(".partial.npy").rename(path)
    return torch.from_numpy(np.load(path))


def measure_scale(latents: Tensor) -> float:
    """The factor that gives the latents a standard deviation of 1."""
    return round(1 / float(latents[:4096].float().std()), 5)
