"""The same run in Bridle and in diffusers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from basics import half_mask as half_mask
from basics import picture as picture
from basics import rel_l2 as rel_l2
from diffusers import AutoencoderTiny, DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_networks import randomise

import bridle
from bridle.backends.reference import ReferenceBackend
from bridle.weights import Component

PROMPT, NEGATIVE, STEPS, GUIDANCE, SEED = "a red circle", "blue", 20, 5.0, 5


def request(**changes: object) -> bridle.Request:
    """The request of all tests, with changes; latents by default."""
    fields: dict = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "seed": SEED,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "output_type": "latent",
    }
    return bridle.Request(**{**fields, **changes})


def latents(engine: bridle.Engine, **changes: object) -> torch.Tensor:
    """Bridle's latents."""
    result = engine.sample(request(**changes))
    assert isinstance(result, bridle.Result)
    return result.latents


def diffusers_latents(pipeline: DiffusionPipeline, **arguments: object) -> torch.Tensor:
    """The latents of a diffusers pipeline for the same request."""
    pipeline.set_progress_bar_config(disable=True)
    common = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "generator": torch.Generator().manual_seed(SEED),
        "output_type": "latent",
    }
    return pipeline(**{**common, **arguments}).images


def with_input_channels(folder: Path, target: Path, channels: int) -> Path:
    """A copy of the model folder whose U-Net takes more input channels."""
    shutil.copytree(folder, target)
    config = json.loads((target / "unet/config.json").read_text())
    (target / "unet/config.json").write_text(json.dumps({**config, "in_channels": channels}))
    file = target / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    shape = (tensors["conv_in.weight"].shape[0], channels, 3, 3)
    tensors["conv_in.weight"] = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * (9 * channels) ** -0.5
    save_file(tensors, file, metadata={"format": "pt"})
    return target


def with_tiny_autoencoder(folder: Path, target: Path) -> Path:
    """A copy of the model folder with an AutoencoderTiny of random weights."""
    shutil.copytree(folder, target)
    shutil.rmtree(target / "vae")
    autoencoder = AutoencoderTiny()
    randomise(autoencoder, 4)
    autoencoder.save_pretrained(target / "vae")
    index = json.loads((target / "model_index.json").read_text())
    (target / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderTiny"]}))
    return target


def with_dtype(engine: bridle.Engine, dtype: torch.dtype) -> bridle.Engine:
    """The same weights in another type."""
    model = engine.backend.model
    parts = {name: converted(getattr(model, name), dtype) for name in ("unet", "vae")}
    encoders = tuple(converted(encoder, dtype) for encoder in model.text_encoders)
    backend = ReferenceBackend(replace(model, text_encoders=encoders, **parts), torch.device("cpu"), dtype)
    return bridle.Engine(backend, engine.path)


def converted(component: Component, dtype: torch.dtype) -> Component:
    return replace(component, tensors={name: tensor.to(dtype) for name, tensor in component.tensors.items()})
