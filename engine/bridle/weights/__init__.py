"""Model folders -> named tensors. Safetensors and JSON only; nothing from a model folder is ever executed."""

from pathlib import Path

import torch

from bridle.errors import ModelLoadError
from bridle.networks.configs import AdapterConfig, ControlNetConfig
from bridle.weights.folder import load_component, load_folder
from bridle.weights.model import Component, Model

__all__ = ["Component", "Model", "load_adapter", "load_controlnet", "load_model"]


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    variant: str | None = None,
    tokenizer: str | Path | None = None,
) -> Model:
    """Loads a diffusers folder. dtype: None keeps the stored one. Raises ModelLoadError."""
    return load_folder(_folder(path), dtype, device or torch.device("cpu"), variant, tokenizer)


def load_controlnet(
    path: str | Path, *, dtype: torch.dtype | None, device: torch.device, base: Model
) -> Component[ControlNetConfig]:
    """Loads a ControlNet folder that fits `base`. Raises ModelLoadError."""
    component = load_component(_folder(path), "", ("ControlNetModel",), dtype, device)
    unet = base.unet.config
    for field in ("cross_attention_dim", "block_out_channels", "layers", "added_dim"):
        got, want = getattr(component.config, field), getattr(unet, field)
        if got != want:
            raise ModelLoadError(Path(path).name, f"{field} is {got}, the base model has {want}")
    return component


def load_adapter(
    path: str | Path, *, dtype: torch.dtype | None, device: torch.device, base: Model
) -> Component[AdapterConfig]:
    """Loads a T2I-Adapter folder that fits `base`. Raises ModelLoadError."""
    component = load_component(_folder(path), "", ("T2IAdapter",), dtype, device)
    widths = set(base.unet.config.block_out_channels)
    if not set(component.config.channels) <= widths:
        got, want = component.config.channels, base.unet.config.block_out_channels
        raise ModelLoadError(Path(path).name, f"channels are {got}, the base model has {want}")
    return component


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise ModelLoadError(folder.name or str(folder), "is not a folder")
    return folder
