"""Stage one: the autoencoder between pictures and latents an eighth as wide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from tqdm import trange

import workers
from linear_start import start_linear
from scenes import SceneImages, to_bytes
from sheets import save_sheet
from stage import Stage
from world import SIZE

CHANNELS = (16, 32, 48, 64)
KL_WEIGHT = 3e-4
SQUARED_WEIGHT = 12.0
ENCODE_CHUNK = 100
CROP = 32
CROP_SHARE = 0.7
"""Crops are sixteen times cheaper than pictures; the last part of the budget sees whole pictures."""


def build_autoencoder() -> AutoencoderKL:
    """A small AutoencoderKL that starts as the mean colour of each latent cell."""
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
    start_linear(autoencoder)
    return autoencoder


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the pixels, of their gradients and of two coarser scales, and the squared error.

    Absolute errors alone neglect small objects: the median of what surrounds them is a good guess for most pixels.
    """
    total = functional.l1_loss(output, target) + SQUARED_WEIGHT * functional.mse_loss(output, target)
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

    return Stage("autoencoder", minutes, autoencoder, loss, show, learning_rate=1.5e-3, batch=batch, ema_decay=0.995)


def encode_all(autoencoder: AutoencoderKL, images: SceneImages, folder: Path, device: torch.device) -> Tensor:
    """Latents of every training picture, unscaled, (count, 4, SIZE / 8, SIZE / 8) float16.

    Every worker encodes its part and keeps it in a file of the folder; then all read all parts.
    """
    parts = np.array_split(np.arange(images.count), workers.count())
    files = [folder / f"latents-{index + 1}-of-{len(parts)}.npy" for index in range(len(parts))]
    own = files[workers.rank()]
    if not own.exists():
        partial = own.with_suffix(".partial.npy")
        np.save(partial, _encode(autoencoder, images, parts[workers.rank()], device))
        partial.rename(own)
    workers.barrier()
    return torch.from_numpy(np.concatenate([np.load(file) for file in files]))


def _encode(
    autoencoder: AutoencoderKL, images: SceneImages, indices: npt.NDArray[np.int64], device: torch.device
) -> npt.NDArray[np.float16]:
    latents = np.empty((len(indices), 4, SIZE // 8, SIZE // 8), np.float16)
    for start in trange(0, len(indices), ENCODE_CHUNK, desc="latents", mininterval=5):
        chunk = slice(start, start + ENCODE_CHUNK)
        with torch.no_grad():
            posterior = autoencoder.encode(images.tensor(indices[chunk], device)).latent_dist
        latents[chunk] = posterior.mean.half().cpu().numpy()
    return latents


def measure_scale(latents: Tensor) -> float:
    """The factor that gives the latents a standard deviation of 1."""
    return round(1 / float(latents[:4096].float().std()), 5)
