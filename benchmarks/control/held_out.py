"""Scenes that no training run has seen, each with a caption and its control images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from captions import Caption, describe
from controls import HINTS
from world import ByteImage, GroundTruth, Scene, ground_truth, render, seeded_scene

FIRST_SEED = 1_000_000_000
"""Training counts scenes from 0; a billion is out of its reach."""


@dataclass(frozen=True)
class Case:
    """One held-out scene. picture: its rendering. hints: control images [SIZE, SIZE, 3] by the control's name."""

    seed: int
    scene: Scene
    truth: GroundTruth
    picture: ByteImage
    caption: Caption
    hints: Mapping[str, ByteImage]


def held_out_case(index: int) -> Case:
    """The scene of seed `FIRST_SEED` + index."""
    seed = FIRST_SEED + index
    scene = seeded_scene(seed)
    picture = render(scene)
    return Case(
        seed=seed,
        scene=scene,
        truth=ground_truth(scene),
        picture=picture,
        caption=describe(scene, np.random.default_rng((seed, 1))),
        hints={name: hint(scene, picture) for name, hint in HINTS.items()},
    )
