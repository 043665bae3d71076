"""The training scenes on disk: rendered once, then read at random."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from world import SIZE, ByteImage, render, seeded_scene

CHUNK = 250

Draw = Callable[[int], ByteImage]
"""Index of a training scene -> (SIZE, SIZE, 3) uint8. A pickle of it goes to every process that draws."""


class SceneImages:
    """Rendered scenes `first_seed`, `first_seed` + 1, ... in one memory-mapped file."""

    def __init__(self, path: Path, count: int, first_seed: int) -> None:
        self.first_seed = first_seed
        self.count = count
        self.path = path
        self.pixels = drawn_once(path, count, partial(_picture, first_seed))

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


def _picture(first_seed: int, index: int) -> ByteImage:
    return render(seeded_scene(first_seed + index))


def drawn_once(path: Path, count: int, draw: Draw) -> npt.NDArray[np.uint8]:
    """(count, SIZE, SIZE, 3), memory-mapped; drawn by all cores if the file is not there yet."""
    if not path.exists():
        # Under a temporary name first, so that a broken run leaves no half file behind.
        partial_path = path.with_suffix(".partial")
        np.memmap(partial_path, np.uint8, "w+", shape=(count, SIZE, SIZE, 3)).flush()
        starts = range(0, count, CHUNK)
        with get_context("fork").Pool(os.cpu_count()) as pool:
            work = pool.imap_unordered(partial(_draw_chunk, partial_path, count, draw), starts)
            for _ in tqdm(work, total=len(starts), desc=path.stem, mininterval=5):
                pass
        partial_path.rename(path)
    return np.memmap(path, np.uint8, "c", shape=(count, SIZE, SIZE, 3))


def _draw_chunk(path: Path, count: int, draw: Draw, start: int) -> None:
    pixels = np.memmap(path, np.uint8, "r+", shape=(count, SIZE, SIZE, 3))
    for index in range(start, min(start + CHUNK, count)):
        pixels[index] = draw(index)
