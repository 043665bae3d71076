"""ControlNets and T2I-Adapters as single files, in the official keys or those of diffusers. Safetensors only."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from bridle.errors import ModelLoadError
from bridle.networks import adapters, controlnet
from bridle.networks.configs import AdapterConfig, ControlNetConfig, EncoderConfig
from bridle.weights import key_maps
from bridle.weights.model import Component, Model
from bridle.weights.safetensors_file import read_tensors
from bridle.weights.single_file import CHECKPOINT, all_used, component

HINT_WIDTHS = (16, 32, 96, 256)


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
        tensors = _renamed_controlnet(tensors, config, prefix, path.name)
    if difference:
        tensors = {key: tensor + _base_tensor(base, key, tensor) for key, tensor in tensors.items()}
    return component(config, tensors, controlnet.tensor_shapes, path.name)


def _renamed_controlnet(
    tensors: Mapping[str, Tensor], config: ControlNetConfig, prefix: str, name: str
) -> dict[str, Tensor]:
    """Under diffusers names. Full dumps have a prefix, and the base model beside it, which is left alone."""
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    for key in tensors:
        if key not in own and not key.startswith(CHECKPOINT):
            raise ModelLoadError(name, "is not part of a ControlNet", key[:120])
    renamed = key_maps.to_diffusers(own, key_maps.controlnet_names(config), prefix)
    all_used(own, renamed, name)
    return renamed


def load_adapter_file(path: Path, dtype: torch.dtype | None, device: torch.device) -> Component[AdapterConfig]:
    """Loads a T2I-Adapter in the official or diffusers' keys; kind and widths are read off the weights."""
    tensors = dict(read_tensors(path, path.name, dtype, device))
    if not any(".resnets." in key for key in tensors):
        tensors = {key.removeprefix("adapter."): tensor for key, tensor in tensors.items()}
        config = _adapter_config(tensors, path.name)
        renamed = key_maps.to_diffusers(tensors, key_maps.adapter_names(config))
        all_used(tensors, renamed, path.name)
        tensors = renamed
    else:
        official = key_maps.diffusers_adapter_to_official(tensors)
        config = _adapter_config(official, path.name)
    return component(config, tensors, adapters.tensor_shapes, path.name)


def _adapter_config(tensors: Mapping[str, Tensor], name: str) -> AdapterConfig:
    """From official keys (controls.md 3d). Raises ModelLoadError."""
    try:
        return _read_adapter_config(tensors, name)
    except (IndexError, KeyError) as problem:
        raise ModelLoadError(name, f"is no T2I-Adapter: {type(problem).__name__} {problem}") from problem


def _read_adapter_config(tensors: Mapping[str, Tensor], name: str) -> AdapterConfig:
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
