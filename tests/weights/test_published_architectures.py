"""The configurations that ship in the package are the published ones: every tensor as diffusers and transformers build it."""

from collections.abc import Mapping
from math import prod
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, T2IAdapter, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bridle.architectures import ARCHITECTURES, Config, adapter_config, controlnet_config
from bridle.weights.folder import NETWORKS

CLASSES: Mapping[str, Any] = {
    kind.__name__: kind for kind in (UNet2DConditionModel, AutoencoderKL, ControlNetModel, T2IAdapter)
}
CLIP = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
SD15, SD21, SDXL = (ARCHITECTURES[name] for name in ("sd15", "sd21", "sdxl"))

# Millions of parameters, as the papers and model cards give them.
CASES: Mapping[str, tuple[Config, float]] = {
    "SD 1.5 U-Net": (SD15.unet, 859.52),
    "SD 2.1 U-Net": (SD21.unet, 865.91),
    "SDXL U-Net": (SDXL.unet, 2567.46),
    "autoencoder": (SD15.vae, 83.65),
    "CLIP ViT-L": (SD15.text_encoders[0], 123.06),
    "OpenCLIP ViT-H without its last layer": (SD21.text_encoders[0], 340.39),
    "OpenCLIP ViT-bigG": (SDXL.text_encoders[1], 694.66),
    "SD 1.5 ControlNet": (controlnet_config(SD15.unet), 361.28),
    "SD 1.5 T2I-Adapter": (adapter_config(SD15.unet), 77.37),
    "SDXL T2I-Adapter": (adapter_config(SDXL.unet), 79.03),
}


def built(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes under the published names, without memory for the values."""
    architectures = config.get("architectures")
    with torch.device("meta"):
        if isinstance(architectures, list):
            model = CLIP[architectures[0]](CLIPTextConfig(**config))
        else:
            model = CLASSES[str(config["_class_name"])].from_config(dict(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    bare = isinstance(architectures, list) and not any(name.startswith("text_model.") for name in shapes)
    return {f"text_model.{name}": shape for name, shape in shapes.items()} if bare else shapes


@pytest.mark.parametrize("case", CASES)
def test_tensors(case: str) -> None:
    config, millions = CASES[case]
    architectures = config.get("architectures")
    config_type, tensor_shapes = NETWORKS[
        architectures[0] if isinstance(architectures, list) else config["_class_name"]
    ]
    ours = tensor_shapes(config_type.from_dict(config, "config.json"))
    assert ours == built(config)
    assert sum(map(prod, ours.values())) / 1e6 == pytest.approx(millions, abs=0.01)


def test_what_the_shapes_do_not_say() -> None:
    """Heads, scales, schedules and where the text features are taken."""
    assert [a.unet["attention_head_dim"] for a in (SD15, SD21, SDXL)] == [8, [5, 10, 20, 20], [5, 10, 20]]
    assert [a.vae["scaling_factor"] for a in (SD15, SD21, SDXL)] == [0.18215, 0.18215, 0.13025]
    assert [a.scheduler.get("prediction_type", "epsilon") for a in (SD15, SD21, SDXL)] == [
        "epsilon",
        "v_prediction",
        "epsilon",
    ]
    assert [t["hidden_act"] for a in (SD15, SD21, SDXL) for t in a.text_encoders] == [
        "quick_gelu",
        "gelu",
        "quick_gelu",
        "gelu",
    ]
    for architecture in (SD15, SD21, SDXL):
        scheduler = architecture.scheduler
        assert (scheduler["beta_start"], scheduler["beta_end"]) == (0.00085, 0.012)
        assert (scheduler["beta_schedule"], scheduler["steps_offset"]) == ("scaled_linear", 1)
