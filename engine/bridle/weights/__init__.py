"""Model folders and single files -> named tensors. Safetensors and JSON only; nothing from a model folder is ever executed."""

import os
from pathlib import Path

import torch

from bridle.errors import ModelLoadError
from bridle.networks.configs import AdapterConfig, ControlNetConfig
from bridle.weights.folder import load_component, load_folder
from bridle.weights.model import Component, Model
from bridle.weights.single_file import load_adapter_file, load_controlnet_file, load_single_file

__all__ = ["Component", "Model", "load_adapter", "load_controlnet", "load_model"]


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    variant: str | None = None,
    tokenizer: str | Path | None = None,
    prediction_type: str | None = None,
) -> Model:
    """Loads a diffusers folder, a single-file checkpoint or a Hugging Face id that is in the local cache.

    dtype: None keeps the stored one. variant: of a folder. tokenizer: a folder. prediction_type: of a single file of SD
    2.x, see `single_file.load_single_file`. Raises ModelLoadError. Never touches the network.
    """
    found, place = locate(path), device or torch.device("cpu")
    if found.is_file():
        return load_single_file(found, dtype, place, tokenizer, prediction_type)
    return load_folder(found, dtype, place, variant, tokenizer)


def load_controlnet(
    path: str | Path, *, dtype: torch.dtype | None, device: torch.device, base: Model
) -> Component[ControlNetConfig]:
    """Loads a ControlNet folder, file or cached id that fits `base`. Raises ModelLoadError."""
    found = locate(path)
    if found.is_file():
        return load_controlnet_file(found, dtype, device, base)
    component = load_component(found, "", ("ControlNetModel",), dtype, device)
    unet = base.unet.config
    for field in ("cross_attention_dim", "block_out_channels", "layers", "added_dim"):
        got, want = getattr(component.config, field), getattr(unet, field)
        if got != want:
            raise ModelLoadError(Path(path).name, f"{field} is {got}, the base model has {want}")
    return component


def load_adapter(
    path: str | Path, *, dtype: torch.dtype | None, device: torch.device, base: Model
) -> Component[AdapterConfig]:
    """Loads a T2I-Adapter folder, file or cached id that fits `base`. Raises ModelLoadError."""
    found = locate(path)
    if found.is_file():
        component = load_adapter_file(found, dtype, device)
    else:
        component = load_component(found, "", ("T2IAdapter",), dtype, device)
    widths = set(base.unet.config.block_out_channels)
    if not set(component.config.channels) <= widths:
        got, want = component.config.channels, base.unet.config.block_out_channels
        raise ModelLoadError(Path(path).name, f"channels are {got}, the base model has {want}")
    return component


def locate(path: str | Path) -> Path:
    """The folder or `.safetensors` file of a path or cached Hugging Face id. Raises ModelLoadError."""
    found = Path(path)
    if os.path.isdir(found):
        return found
    if os.path.isfile(found):
        if found.suffix != ".safetensors":
            raise ModelLoadError(
                found.name, "is not a .safetensors file; pickled checkpoints are not read, convert them"
            )
        return found
    return _cached_snapshot(str(path))


def _cached_snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    shown = ascii(name)[1:-1][-80:]
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelLoadError(shown, "does not exist")
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as problem:
        raise ModelLoadError(
            shown, "is neither a folder, a file nor an id in the local Hugging Face cache"
        ) from problem
