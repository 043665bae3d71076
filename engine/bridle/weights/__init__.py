"""Model folders and single files -> named tensors. Safetensors and JSON only; nothing from a model folder is ever executed."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from bridle.errors import ModelLoadError, RequestError
from bridle.networks.configs import AdapterConfig, ControlNetConfig
from bridle.weights.control_files import load_adapter_file, load_controlnet_file
from bridle.weights.exported import exported_component, exported_ip_adapter, is_exported, load_exported
from bridle.weights.folder import confined, load_component, load_folder
from bridle.weights.ip_adapter import adapter_file, load_ip_adapter_file
from bridle.weights.model import Component, IPAdapter, Model
from bridle.weights.single_file import load_single_file

__all__ = [
    "Component",
    "IPAdapter",
    "Model",
    "holds_graphs",
    "load_adapter",
    "load_controlnet",
    "load_graphs",
    "load_ip_adapter",
    "load_model",
    "locate",
]


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

    dtype: None keeps the stored one. variant: of a folder. tokenizer: a folder. prediction_type: of a single file, see
    `single_file.load_single_file`. Raises ModelLoadError, and RequestError for an argument that the model has no use
    for. Never touches the network.
    """
    found, place = locate(path), device or torch.device("cpu")
    if prediction_type not in (None, "epsilon", "v_prediction"):
        raise RequestError("prediction_type", prediction_type, "'epsilon' or 'v_prediction'")
    if prediction_type is not None and not found.is_file():
        raise RequestError("prediction_type", prediction_type, "None: a folder's scheduler_config.json says it")
    if variant is not None and found.is_file():
        raise RequestError("variant", variant, "None: a single file has no variants")
    if found.is_file():
        return load_single_file(found, dtype, place, tokenizer, prediction_type)
    return load_folder(found, dtype, place, variant, tokenizer)


def load_graphs(path: str | Path, *, tokenizer: str | Path | None = None) -> Model:
    """The model of an exported folder or cached id, its networks as ONNX graphs. Raises ModelLoadError."""
    found = locate(path)
    if found.is_file():
        raise ModelLoadError(found.name, "is a file of weights, wants a folder that `bridle export` has written")
    return load_exported(found, tokenizer)


def holds_graphs(path: str | Path) -> bool:
    """Whether a model is a folder of ONNX graphs without weights. Raises ModelLoadError for a path that does not exist."""
    found = locate(path)
    return found.is_dir() and is_exported(found)


def load_controlnet(
    path: str | Path, *, dtype: torch.dtype | None, device: torch.device, base: Model
) -> Component[ControlNetConfig]:
    """Loads a ControlNet folder, file or cached id that fits `base`. Raises ModelLoadError."""
    found = locate(path)
    if found.is_file():
        return load_controlnet_file(found, dtype, device, base)
    if base.exported:
        component = exported_component(found, "", ("ControlNetModel",))
    else:
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
    elif base.exported:
        component = exported_component(found, "", ("T2IAdapter",))
    else:
        component = load_component(found, "", ("T2IAdapter",), dtype, device)
    widths = set(base.unet.config.block_out_channels)
    if not set(component.config.channels) <= widths:
        got, want = component.config.channels, base.unet.config.block_out_channels
        raise ModelLoadError(Path(path).name, f"channels are {got}, the base model has {want}")
    return component


def load_ip_adapter(
    path: str | Path,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    base: Model,
    subfolder: str = "",
    weight_name: str | None = None,
    image_encoder: str | Path | None = None,
    loaded: Iterable[IPAdapter] = (),
) -> IPAdapter:
    """Loads an IP-Adapter that fits `base`, with its CLIP image encoder.

    path: a .safetensors file, or a folder or cached id that holds it. subfolder, weight_name: where in the folder, as in
    diffusers' `load_ip_adapter`; the only .safetensors file there if no name is given. image_encoder: folder (inside the
    adapter's folder or anywhere) or cached id of a `CLIPVisionModelWithProjection`; None looks for a folder
    `image_encoder` beside the file and above it. loaded: adapters whose encoder is shared where it is the same folder.
    Raises ModelLoadError.
    """
    found = locate(path)
    if base.exported and found.is_dir():
        return exported_ip_adapter(confined(found, subfolder), base)
    if found.is_file() and (subfolder or weight_name):
        raise ModelLoadError(found.name, "is a file, wants a folder where subfolder or weight_name is given")
    file = found if found.is_file() else adapter_file(found, subfolder, weight_name)
    encoder = None
    if image_encoder is not None:
        inside = [place for place in (file.parent / image_encoder, found / image_encoder) if place.is_dir()]
        encoder = inside[0] if inside else locate(image_encoder)
    return load_ip_adapter_file(file, dtype, device, base, encoder, loaded)


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
