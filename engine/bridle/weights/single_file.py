"""Single-file checkpoints in the official formats: SD 1.x, 2.x and XL, ControlNet, T2I-Adapter. Safetensors only."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridle.architectures import ARCHITECTURES, Architecture, Config
from bridle.errors import ModelLoadError
from bridle.networks import text, unet, vae
from bridle.networks.configs import TextConfig, UNetConfig, VaeConfig
from bridle.weights import key_maps
from bridle.weights.folder import checked, model_architecture
from bridle.weights.model import Component, Model
from bridle.weights.safetensors_file import in_dtype, read_header, read_metadata, read_stored
from bridle.weights.tokenizers import check_vocabularies, single_file_tokenizers

UNET, VAE = "model.diffusion_model.", "first_stage_model."
SD1_TEXT, SD2_TEXT = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_TEXT, XL_TEXT_2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
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
CHECKPOINT = (UNET, VAE, SD1_TEXT, SD2_TEXT, XL_TEXT, XL_TEXT_2, *_TRAINING)
_OPEN_CLIP_UNUSED = ("logit_scale", "text_projection", "attn_mask")
_VAE_TRAINING = ("loss.", "model_ema.")


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
    tensors = dict(read_stored(path, path.name, dtype))
    parts = _unet(tensors, chosen, path.name), _vae(tensors, chosen, path.name)
    encoders = tuple(
        _text_encoder(tensors, config, family, index, path.name) for index, config in enumerate(chosen.text_encoders)
    )

    def placed(part: Component[Any]) -> Component[Any]:
        return replace(part, tensors=in_dtype(part.tensors, dtype, device))

    tokenizers = single_file_tokenizers(tokenizer, family)
    check_vocabularies(tokenizers, tuple(encoder.config.vocab_size for encoder in encoders))
    velocity = family == "sd21" and parts[0].config.in_channels == 4
    scheduler = {**chosen.scheduler, "prediction_type": prediction_type or _stated_prediction(path, velocity)}
    return Model(
        name=path.stem,
        architecture=model_architecture(parts[0].config, len(encoders), family == "sd21"),
        unet=placed(parts[0]),
        vae=placed(parts[1]),
        text_encoders=tuple(map(placed, encoders)),
        tokenizers=tokenizers,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=family == "sdxl",
    )


def _family(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    found = [
        family
        for family, prefix in (("sdxl", XL_TEXT_2), ("sd21", SD2_TEXT), ("sd15", SD1_TEXT))
        if any(key.startswith(prefix) for key in shapes)
    ]
    if not found or f"{UNET}input_blocks.0.0.weight" not in shapes:
        raise ModelLoadError(name, "is no Stable Diffusion checkpoint: its U-Net or text encoder is missing")
    for key in shapes:
        if not key.startswith(CHECKPOINT):
            raise ModelLoadError(name, "is not part of a Stable Diffusion checkpoint", key[:120])
    return found[0]


def _unet(tensors: Mapping[str, Tensor], architecture: Architecture, name: str) -> Component[UNetConfig]:
    first = f"{UNET}input_blocks.0.0.weight"
    if tensors[first].ndim != 4:
        raise ModelLoadError(name, f"has shape {list(tensors[first].shape)}, wants four dimensions", first)
    channels = tensors[first].shape[1]
    config = UNetConfig.from_dict({**architecture.unet, "in_channels": channels}, name)
    own = _under(tensors, UNET)
    renamed = key_maps.to_diffusers(own, key_maps.unet_names(config))
    all_used(own, renamed, name)
    return component(config, renamed, unet.tensor_shapes, name)


def _vae(tensors: Mapping[str, Tensor], architecture: Architecture, name: str) -> Component[VaeConfig]:
    config = VaeConfig.from_dict(architecture.vae, name)
    own = {key: tensor for key, tensor in _under(tensors, VAE).items() if not key.startswith(_VAE_TRAINING)}
    renamed = key_maps.to_diffusers(own, key_maps.vae_names(config))
    all_used(own, renamed, name)
    flat = {key: value[:, :, 0, 0] if _is_attention_conv(key, value) else value for key, value in renamed.items()}
    return component(config, flat, vae.tensor_shapes, name)


def _is_attention_conv(key: str, value: Tensor) -> bool:
    """Official autoencoders store the attention's projections as 1x1 convolutions."""
    return ".attentions." in key and value.ndim == 4


def _text_encoder(
    tensors: Mapping[str, Tensor], given: Config, family: str, index: int, name: str
) -> Component[TextConfig]:
    config = TextConfig.from_dict(given, name)
    if family == "sd15" or (family == "sdxl" and index == 0):
        own = _under(tensors, SD1_TEXT if family == "sd15" else XL_TEXT)
        return component(config, own, text.tensor_shapes, name)
    own = _under(tensors, SD2_TEXT if family == "sd21" else XL_TEXT_2)
    renamed = key_maps.open_clip_to_transformers(own, config.layers, config.projection_dim is not None)
    read = component(config, renamed, text.tensor_shapes, name)
    last = f"transformer.resblocks.{config.layers}."
    known = key_maps.transformers_to_open_clip(read.tensors, config.layers)
    for key in own:
        if key not in known and not key.startswith((*_OPEN_CLIP_UNUSED, last)):
            raise ModelLoadError(name, "is not part of this network", key[:120])
    return read


def _stated_prediction(path: Path, velocity: bool) -> str:
    """What the file's metadata says, else what is usual for the family. velocity: whether that is the velocity."""
    stated = read_metadata(path).get("modelspec.prediction_type")
    if stated in ("epsilon", "v"):
        velocity = stated == "v"
    return "v_prediction" if velocity else "epsilon"


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def all_used(own: Mapping[str, Tensor], renamed: Mapping[str, Tensor], name: str) -> None:
    """Raises ModelLoadError for a tensor of `own` that renaming has passed over."""
    if len(renamed) < len(own):
        used = {id(tensor) for tensor in renamed.values()}
        stranger = next(key for key, tensor in own.items() if id(tensor) not in used)
        raise ModelLoadError(name, "is not part of this network", stranger[:120])


def component(
    config: Any, tensors: Mapping[str, Tensor], tensor_shapes: Callable[[Any], Mapping[str, tuple[int, ...]]], name: str
) -> Component[Any]:
    """A network with exactly the tensors that its configuration wants. Raises ModelLoadError."""
    return Component(config, checked(tensors, tensor_shapes(config), name), name)
