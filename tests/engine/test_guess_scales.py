"""Guess mode: the official scales by name, from the official configuration; diffusers' as default."""

import json
from pathlib import Path

import numpy as np
from runs import latents, picture, rel_l2

import bridle
from bridle.controls.controlnet import guess_factors

GOLDEN = Path(__file__).parents[1] / "goldens/controlnet/public-unet/config.json"


def test_official_scales() -> None:
    reading = json.loads(GOLDEN.read_text())["reading"]
    assert np.allclose(guess_factors("official", 13) * reading["strength"], reading["guess_scales"], rtol=1e-12)
    assert np.allclose(guess_factors("diffusers", 13), np.logspace(-1, 0, 13))


def test_the_choice_changes_the_image_a_little(engine: bridle.Engine) -> None:
    one, other = (
        latents(
            engine,
            num_inference_steps=3,
            controls=[bridle.ControlNet("controlnet", picture(), guess_mode=True, guess_scales=name)],
        )
        for name in ("diffusers", "official")
    )
    assert 0 < rel_l2(one, other) < 0.05
