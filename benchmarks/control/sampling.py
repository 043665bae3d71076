"""Requests -> pictures, in batches with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

import bridle
from world import ByteImage


def sample_pictures(
    engine: bridle.Engine, requests: Sequence[bridle.Request], batch: int, description: str
) -> list[ByteImage]:
    """The first image of every request, [H, W, 3] uint8. batch: requests sampled together."""
    pictures: list[ByteImage] = []
    with tqdm(total=len(requests), desc=description, unit="picture") as bar:
        for start in range(0, len(requests), batch):
            results = engine.sample(list(requests[start : start + batch]), progress=False)
            assert isinstance(results, list)
            for result in results:
                assert isinstance(result.images, list)
                pictures.append(np.asarray(result.images[0]))
            bar.update(len(results))
    return pictures
