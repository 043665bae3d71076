"""Single-file checkpoints in the official formats: SD 1.x, 2.x and XL, ControlNet, T2I-Adapter. Safetensors only."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridle.architectures import ARCHITECTURES, Architecture, Config
from bridle.errors import ModelLoadError
from bridle.networks import adapters, controlnet, text, unet, vae
from bridle.networks.configs import AdapterConfig, ControlNetConfig, EncoderConfig, TextConfig, UNetConfig, VaeConfig
from bridle.weights import key_maps
from bridle.weights.folder import checked, model_architecture
from bridle.weights.model import Component, Model
from bridle.weights.safetensors_file import read_header, read_metadata, read_tensors
from bridle.weights.tokenizers import single_file_tokenizers

UNET, VAE = "model.diffusion_model.", "first_stage_model."
SD1_TEXT, SD2_TEXT = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_TEXT, XL_TEXT_2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
HINT_WIDTHS = (16, 32, 96, 256)
_TRAINING = (
    "model_ema.",
    "alphas_cumprod",
    "betas",
    "sqrt_",
    "log_one_minus",
    "posterior_",
    "denoiser.",
    "depth_model.",
)
"""Beginnings of keys that full dumps carry beside the networks."""


def load_single_file(
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    tokenizer: str | Path | None = None,
    prediction_type: str | None = None,
    architecture: Architecture | None = None,
) -> Model:
    """Loads a checkpoint. architecture: None finds the published one by the key names.

    prediction_type: weights do not say it: the argument, else the file's `modelspec.prediction_type`, else
    "v_prediction" for the 4-channel U-Net of SD 2.x (768 px) and "epsilon" for the others.
    Raises ModelLoadError.
    """
    shapes = {key: stored.shape for key, stored in read_header(path, path.name).items()}
    family = _family(shapes, path.name)
    chosen = architecture or ARCHITECTURES[family]
    tensors = dict(read_tensors(path, path.name, dtype, device))
    parts = _unet(tensors, chosen, path.name), _vae(tensors, chosen, path.name)
    encoders = tuple(
        _text_encoder(tensors, config, family, index, path.name) for index, config in enumerate(chosen.text_encoders)
    )
    velocity = family == "sd21" and parts[0].config.in_channels == 4
    scheduler = {**chosen.scheduler, "prediction_type": prediction_type or _stated_prediction(path, velocity)}
    return Model(
        name=path.stem,
        architecture=model_architecture(parts[0].config, len(encoders), family == "sd21"),
        unet=parts[0],
        vae=parts[1],
        text_encoders=encoders,
        tokenizers=single_file_tokenizers(tokenizer, family),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=family == "sdxl",
    )


def load_controlnet_file(
    path: Path, dtype: torch.dtype | None, device: torch.device, base: Model
) -> Component[ControlNetConfig]:
    """Loads a ControlNet for `base`: official keys with or without `control_model.`, difference files, diffusers keys.

    A file name with "shuffle" means residuals pooled over space, which the weights do not tell. Raises ModelLoadError.
    """
    tensors = dict(read_tensors(path, path.name, dtype, device))
    difference = tensors.pop("difference", None) is not None
    prefix = "control_model." if any(key.startswith("control_model.") for key in tensors) else ""
    shared = {item.name: getattr(base.unet.config, item.name) for item in fields(EncoderConfig)}
    official = f"{prefix}input_blocks.0.0.weight"
    first = tensors.get(official, tensors.get("conv_in.weight"))
    if first is None or first.ndim != 4:
        raise ModelLoadError(path.name, "is no ControlNet: it has no first convolution", official)
    config = ControlNetConfig(
        **{**shared, "in_channels": first.shape[1]},
        hint_channels=3,
        hint_widths=HINT_WIDTHS,
        channel_order="rgb",
        global_pool="shuffle" in path.stem.lower(),
    )
    if official in tensors:
        tensors = key_maps.to_diffusers(tensors, key_maps.controlnet_names(config), prefix)
    if difference:
        tensors = {key: tensor + _base_tensor(base, key, tensor) for key, tensor in tensors.items()}
    return _component(config, tensors, controlnet.tensor_shapes, path.name)


def load_adapter_file(path: Path, dtype: torch.dtype | None, device: torch.device) -> Component[AdapterConfig]:
    """Loads a T2I-Adapter in the official or diffusers' keys; kind and widths are read off the weights."""
    tensors = dict(read_tensors(path, path.name, dtype, device))
    if not any(".resnets." in key for key in tensors):
        tensors = {key.removeprefix("adapter."): tensor for key, tensor in tensors.items()}
        config = _adapter_config(tensors, path.name)
        tensors = key_maps.to_diffusers(tensors, key_maps.adapter_names(config))
    else:
        official = key_maps.diffusers_adapter_to_official(tensors)
        config = _adapter_config(official, path.name)
    return _component(config, tensors, adapters.tensor_shapes, path.name)


def _family(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    found = [
        family
        for family, prefix in (("sdxl", XL_TEXT_2), ("sd21", SD2_TEXT), ("sd15", SD1_TEXT))
        if any(key.startswith(prefix) for key in shapes)
    ]
    if not found or f"{UNET}input_blocks.0.0.weight" not in shapes:
        raise ModelLoadError(name, "is no Stable Diffusion checkpoint: its U-Net or text encoder is missing")
    known = (UNET, VAE, SD1_TEXT, SD2_TEXT, XL_TEXT, XL_TEXT_2, *_TRAINING)
    for key in shapes:
        if not key.startswith(known):
            raise ModelLoadError(name, "is not part of a Stable Diffusion checkpoint", key[:120])
    return found[0]


def _unet(tensors: Mapping[str, Tensor], architecture: Architecture, name: str) -> Component[UNetConfig]:
    channels = tensors[f"{UNET}input_blocks.0.0.weight"].shape[1]
    config = UNetConfig.from_dict({**architecture.unet, "in_channels": channels}, name)
    own = _under(tensors, UNET)
    renamed = key_maps.to_diffusers(own, key_maps.unet_names(config))
    _all_used(own, renamed, name)
    return _component(config, renamed, unet.tensor_shapes, name)


def _vae(tensors: Mapping[str, Tensor], architecture: Architecture, name: str) -> Component[VaeConfig]:
    config = VaeConfig.from_dict(architecture.vae, name)
    renamed = key_maps.to_diffusers(_under(tensors, VAE), key_maps.vae_names(config))
    flat = {key: value[:, :, 0, 0] if _is_attention_conv(key, value) else value for key, value in renamed.items()}
    return _component(config, flat, vae.tensor_shapes, name)


def _is_attention_conv(key: str, value: Tensor) -> bool:
    """Official autoencoders store the attention's projections as 1x1 convolutions."""
    return ".attentions." in key and value.ndim == 4


def _text_encoder(
    tensors: Mapping[str, Tensor], given: Config, family: str, index: int, name: str
) -> Component[TextConfig]:
    config = TextConfig.from_dict(given, name)
    if family == "sd15" or (family == "sdxl" and index == 0):
        own = _under(tensors, SD1_TEXT if family == "sd15" else XL_TEXT)
    else:
        own = _under(tensors, SD2_TEXT if family == "sd21" else XL_TEXT_2)
        own = key_maps.open_clip_to_transformers(own, config.layers, config.projection_dim is not None)
    return _component(config, own, text.tensor_shapes, name)


def _stated_prediction(path: Path, velocity: bool) -> str:
    """What the file's metadata says, else what is usual for the family. velocity: whether that is the velocity."""
    stated = read_metadata(path).get("modelspec.prediction_type")
    if stated in ("epsilon", "v"):
        velocity = stated == "v"
    return "v_prediction" if velocity else "epsilon"


def _adapter_config(tensors: Mapping[str, Tensor], name: str) -> AdapterConfig:
    """From official keys (controls.md 3d)."""
    light = "body.0.in_conv.weight" in tensors and "conv_in.weight" not in tensors
    if light:
        levels = len({key.split(".")[1] for key in tensors})
        widths = tuple(tensors[f"body.{level}.out_conv.weight"].shape[0] for level in range(levels))
        layers = len({key.split(".")[3] for key in tensors if key.startswith("body.0.body.")})
        inputs = tensors["body.0.in_conv.weight"].shape[1]
        return AdapterConfig(
            kind="light_adapter", in_channels=inputs // 64, channels=widths[:-1], layers=layers, downscale=8
        )
    first = tensors.get("conv_in.weight")
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("body.")})
    if first is None or blocks == 0 or blocks % 4:
        raise ModelLoadError(name, "is no T2I-Adapter of four levels", "conv_in.weight")
    layers, inputs = blocks // 4, first.shape[1]
    widths = tuple(tensors[f"body.{level * layers}.block2.weight"].shape[0] for level in range(4))
    xl = inputs in (256, 768)
    return AdapterConfig(
        kind="full_adapter_xl" if xl else "full_adapter",
        in_channels=inputs // (256 if xl else 64),
        channels=widths,
        layers=layers,
        downscale=16 if xl else 8,
    )


def _base_tensor(base: Model, key: str, like: Tensor) -> Tensor:
    """What a difference file was taken from: the U-Net's tensor, zero where it has none."""
    tensor = base.unet.tensors.get(key)
    return torch.zeros_like(like) if tensor is None or tensor.shape != like.shape else tensor.to(like)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _all_used(own: Mapping[str, Tensor], renamed: Mapping[str, Tensor], name: str) -> None:
    if len(renamed) < len(own):
        used = {id(tensor) for tensor in renamed.values()}
        stranger = next(key for key, tensor in own.items() if id(tensor) not in used)
        raise ModelLoadError(name, "is not part of this network", stranger[:120])


def _component(
    config: Any, tensors: Mapping[str, Tensor], tensor_shapes: Callable[[Any], Mapping[str, tuple[int, ...]]], name: str
) -> Component[Any]:
    return Component(config, checked(tensors, tensor_shapes(config), name), name)
