"""Requests -> pictures, in batches with a progress bar, a batch on every core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from tqdm import tqdm

import bridle
from world import ByteImage


def sample_results(
    engine: bridle.Engine, requests: Sequence[bridle.Request], batch: int, description: str
) -> Iterator[bridle.Result]:
    """In the order of the requests. batch: requests sampled together."""
    parts = [list(requests[start : start + batch]) for start in range(0, len(requests), batch)]
    bar = tqdm(total=len(requests), desc=description, unit="picture")
    with bar, _one_thread_each() as cores, ThreadPoolExecutor(cores) as pool:
        for results in pool.map(lambda part: engine.sample(part, progress=False), parts):
            assert isinstance(results, list)
            yield from results
            bar.update(len(results))


def sample_pictures(
    engine: bridle.Engine, requests: Sequence[bridle.Request], batch: int, description: str
) -> list[ByteImage]:
    """The first image of every request, [H, W, 3] uint8. batch: requests sampled together."""
    return [first_image(result) for result in sample_results(engine, requests, batch, description)]


def first_image(result: bridle.Result) -> ByteImage:
    """[H, W, 3] uint8."""
    assert isinstance(result.images, list)
    return np.asarray(result.images[0])


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Gives the number of PyTorch's threads, which is 1 meanwhile: batches on their own scale better than shared ops."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
