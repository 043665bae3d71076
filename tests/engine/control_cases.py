"""One request per control, small and quick, and which of them cannot be combined."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from basics import half_mask, picture

import bridle
from bridle.architectures import ARCHITECTURES
from bridle.new_model import write_new_model

PROMPT = "a red circle left of a blue square"
SOURCE = "a red square left of a blue circle"
WIDTH, HEIGHT, STEPS = 64, 48, 3

Changes = dict[str, Any]

REGIONS = [
    bridle.Region("a green star", (0.0, 0.0, 0.5, 1.0)),
    bridle.Region("a ring", (0.25, 0.0, 1.0, 0.5), weight=2.0, negative_prompt="a moon"),
]

CONTROLS: dict[str, Changes] = {
    "ControlNet": {"controls": [bridle.ControlNet("controlnet", picture(1))]},
    "T2IAdapter": {"controls": [bridle.T2IAdapter("t2i-adapter", picture(2))]},
    "ImagePrompt": {"controls": [bridle.ImagePrompt("ip-adapter", picture(3))]},
    "image-to-image": {"image": picture(4), "strength": 0.7},
    "inpainting": {"image": picture(4), "mask_image": half_mask(64)},
    "CaptureMaps": {"attention": [bridle.CaptureMaps(["circle", "blue square"])]},
    "Reweight": {"attention": [bridle.Reweight("circle", 4.0)]},
    "InjectMap bias": {"attention": [bridle.InjectMap("circle", box=(0.0, 0.0, 0.5, 1.0))]},
    "InjectMap mass": {
        "attention": [bridle.InjectMap("square", np.eye(8, dtype=np.float32), mode="mass", strength=0.8)]
    },
    "PromptEdit": {"attention": [bridle.PromptEdit(SOURCE)]},
    "attention regions": {"regions": REGIONS, "region_mode": "attention"},
    "latent regions": {"regions": REGIONS, "region_mode": "latent", "bootstrapping_steps": 1},
    "Views": {"views": bridle.Views(48, 16)},
    "vae_tiling": {"vae_tiling": True},
    "guidance_scale=1": {"guidance_scale": 1.0},
}
"""What switches each control on."""

REFUSED: dict[tuple[str, str], str] = {
    ("CaptureMaps", "latent regions"): 'region_mode="latent"',
    ("CaptureMaps", "Views"): "views",
    ("PromptEdit", "latent regions"): 'region_mode="latent"',
    ("PromptEdit", "Views"): "views",
}
"""Pairs that cannot be combined, and the name by which the error calls the second."""

ONE_FIELD = [("attention regions", "latent regions")]
"""Pairs that no request can ask for: both are values of `region_mode`."""

ADDS_NOTHING = {("Views", "vae_tiling"): "Views"}
"""Pairs that are what one of them is alone: several views are decoded in tiles anyway."""


def asked(*changes: Changes) -> bridle.Request:
    """The request of all cases with changes; lists of several changes are joined."""
    fields: Changes = {
        "prompt": PROMPT,
        "negative_prompt": "dull",
        "seed": 5,
        "width": WIDTH,
        "height": HEIGHT,
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "output_type": "np",
    }
    for change in changes:
        for name, value in change.items():
            joined = name in ("controls", "attention")
            fields[name] = [*fields.get(name, ()), *value] if joined else value
    return bridle.Request(**fields)


def run(engine: bridle.Engine, *changes: Changes) -> bridle.Result:
    """The result of `asked`."""
    result = engine.sample(asked(*changes))
    assert isinstance(result, bridle.Result)
    return result


def identical(one: bridle.Result, other: bridle.Result) -> bool:
    """Whether two results are the same image to the bit. output_type "np" alone."""
    return bool((one.latents == other.latents).all()) and bool((one.images == other.images).all())


def distance(one: bridle.Result, other: bridle.Result) -> float:
    """How far two images are apart: the larger of the relative distances of latents and pixels."""
    pairs = ((one.latents.numpy(), other.latents.numpy()), (one.images, other.images))
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def write_small(path: Path) -> None:
    """A model of the form of SD 1.x with few heads, groups and layers, and every control: the time of Triton's interpreter is
    the number of programs."""
    tiny = ARCHITECTURES["tiny"]
    down, up = ["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]
    blocks = {"down_block_types": [down[0]] * 2 + [down[1]] * 2, "up_block_types": [up[0]] * 2 + [up[1]] * 2}
    unet = {**tiny.unet, **blocks, "layers_per_block": 1, "norm_num_groups": 1, "attention_head_dim": [1, 2, 2, 2]}
    vae = {**tiny.vae, "layers_per_block": 1, "norm_num_groups": 2}
    text = {**tiny.text_encoders[0], "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", replace(tiny, unet=unet, vae=vae, text_encoders=(text,)))
        write_new_model("small", path, seed=3, controlnet=True, t2i=True, ip_adapter="base")


def write_sd2(path: Path) -> None:
    """A small model of the form of SD 2.x: heads per level, linear projections, velocity, GELU in the text encoder."""
    tiny = ARCHITECTURES["tiny"]
    changes = {"attention_head_dim": [2, 4, 4, 8], "use_linear_projection": True, "upcast_attention": True}
    text = {**tiny.text_encoders[0], "hidden_act": "gelu"}
    scheduler = {**tiny.scheduler, "prediction_type": "v_prediction"}
    form = replace(tiny, unet={**tiny.unet, **changes}, text_encoders=(text,), scheduler=scheduler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny-sd2", form)
        write_new_model("tiny-sd2", path, seed=6, controlnet=True)
