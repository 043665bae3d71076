"""The training scenes on disk: rendered once, then read at random."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from world import SIZE, ByteImage, render, seeded_scene

CHUNK = 500


class SceneImages:
    """Rendered scenes `first_seed`, `first_seed` + 1, ... in one memory-mapped file."""

    def __init__(self, path: Path, count: int, first_seed: int) -> None:
        self.first_seed = first_seed
        self.count = count
        if not path.exists():
            _render_file(path, count, first_seed)
        self.pixels: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r", shape=(count, SIZE, SIZE, 3))

    def tensor(self, indices: npt.NDArray[np.int64], device: torch.device) -> Tensor:
        """Pictures as (batch, 3, SIZE, SIZE) float32 in -1..1."""
        batch = torch.from_numpy(self.pixels[indices])
        return to_signed(batch, device)


def to_signed(pixels: Tensor, device: torch.device) -> Tensor:
    """(batch, height, width, 3) uint8 to (batch, 3, height, width) float32 in -1..1."""
    return pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(pictures: Tensor) -> ByteImage:
    """(batch, 3, height, width) in -1..1 to (batch, height, width, 3) uint8."""
    scaled = ((pictures.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _render_chunk(seeds: tuple[int, int]) -> ByteImage:
    return np.stack([render(seeded_scene(seed)) for seed in range(*seeds)])


def _render_file(path: Path, count: int, first_seed: int) -> None:
    """Render to a temporary name first, so that a broken run leaves no half file behind."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as sink, get_context("fork").Pool(2) as pool:
        chunks = list(_chunks(count, first_seed))
        for pictures in tqdm(pool.imap(_render_chunk, chunks), total=len(chunks), desc="scenes", mininterval=5):
            sink.write(pictures.tobytes())
    partial.rename(path)


def _chunks(count: int, first_seed: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, CHUNK):
        yield first_seed + start, first_seed + min(start + CHUNK, count)
