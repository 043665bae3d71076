"""A request alone and among others: what mates it gets, and whether its bits are the same."""

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import bridle

SIDE = 256


def hint(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


NEEDLES: dict[str, dict[str, object]] = {
    "plain": {},
    "ControlNet": {"controls": [bridle.ControlNet("controlnet", hint(1))], "scheduler": "euler"},
    "regions": {"regions": [bridle.Region("a star", (0.0, 0.0, 0.5, 1.0))], "region_mode": "attention"},
    "capture": {"attention": [bridle.CaptureMaps(["circle"])], "guidance_scale": 3.0},
}

MATES: tuple[dict[str, object], ...] = (
    {"num_inference_steps": 1},
    {"num_inference_steps": 5, "scheduler": "dpm++ 2m"},
    {"guidance_scale": 1.0},
    {"guidance_scale": 9.0, "scheduler": "euler a"},
    {"controls": [bridle.ControlNet("controlnet", hint(2), scale=0.5)]},
    {"controls": [bridle.ControlNet("controlnet", hint(3), end=0.5)], "num_inference_steps": 4},
    {"regions": [bridle.Region("a ring", (0.25, 0.0, 1.0, 0.5), weight=2.0)], "region_mode": "latent"},
    {"regions": [bridle.Region("a moon", (0.0, 0.0, 0.5, 1.0))], "region_mode": "attention"},
    {"attention": [bridle.PromptEdit("a red square on a hill")]},
    {"attention": [bridle.Reweight("circle", 3.0)], "prompt": "a red circle " * 30},
    {"width": 128, "height": 192},
    {"num_images": 2},
)
POISON: dict[str, object] = {"latents": torch.full((1, 4, SIDE // 8, SIDE // 8), 1e38)}
"""Too large for float32 after a step: the image fails, and no other one may know."""


def asked(changes: dict[str, object]) -> bridle.Request:
    fields = {
        "prompt": "a red circle on a hill",
        "seed": 7,
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "output_type": "latent",
    }
    return bridle.Request(**{**fields, **changes})


def alone(engine: bridle.Engine, needle: dict[str, object]) -> Tensor:
    result = engine.sample(asked(needle))
    assert isinstance(result, bridle.Result)
    return result.latents


def among(engine: bridle.Engine, needle: dict[str, object], count: int, seed: int) -> Tensor:
    """The needle's latents in a batch of `count`: one mate is cancelled after its first step, one fails."""
    draw = random.Random(seed)
    mates = [{**mate, "seed": draw.randrange(1000)} for mate in draw.choices(MATES, k=count - 1)]
    mates[-1] = {"seed": 1, **POISON}
    place = draw.randrange(count)
    requests = [asked(mate) for mate in mates]
    requests.insert(place, asked(needle))
    stopped = draw.choice([index for index in range(count) if index != place])

    def watch(snapshot: bridle.StepSnapshot) -> None:
        if snapshot.request_index == stopped:
            snapshot.cancel()

    try:
        results = engine.sample(requests, callback=watch)
    except bridle.BatchError as problem:
        results = problem.results
    found = results[place]
    assert isinstance(found, bridle.Result), found
    return found.latents


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))
