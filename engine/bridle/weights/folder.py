"""Model folders in the layout of diffusers. Nothing in them is ever executed; class names go through fixed tables."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridle.errors import ModelLoadError, RequestError
from bridle.networks import adapters, clip_vision, controlnet, taesd, text, unet, vae
from bridle.networks.configs import (
    AdapterConfig,
    ControlNetConfig,
    TaesdConfig,
    TextConfig,
    UNetConfig,
    VaeConfig,
    VisionConfig,
)
from bridle.schedulers import NOT_LINEAR, SCHEDULER_CLASSES, resolve_scheduler
from bridle.weights.json_file import read_json
from bridle.weights.model import Component, Model
from bridle.weights.safetensors_file import in_dtype, read_stored
from bridle.weights.tokenizers import check_vocabularies, read_tokenizer

Shapes = Mapping[str, tuple[int, ...]]
Network = tuple[Any, Callable[[Any], Shapes]]

NETWORKS: Mapping[str, Network] = {
    "UNet2DConditionModel": (UNetConfig, unet.tensor_shapes),
    "AutoencoderKL": (VaeConfig, vae.tensor_shapes),
    "AutoencoderTiny": (TaesdConfig, taesd.tensor_shapes),
    "CLIPTextModel": (TextConfig, text.tensor_shapes),
    "CLIPTextModelWithProjection": (TextConfig, text.tensor_shapes),
    "CLIPVisionModelWithProjection": (VisionConfig, clip_vision.tensor_shapes),
    "ControlNetModel": (ControlNetConfig, controlnet.tensor_shapes),
    "T2IAdapter": (AdapterConfig, adapters.tensor_shapes),
}
"""Class name in a configuration -> configuration type and expected tensors."""

_FILES = ("diffusion_pytorch_model", "model")
_HARMLESS = ("position_ids",)
_OLD_PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_folder(
    folder: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None, tokenizer: str | Path | None
) -> Model:
    """Loads a pipeline folder. Raises ModelLoadError."""
    index = read_json(folder / "model_index.json", "model_index.json")
    unet_part = load_component(folder, "unet", ("UNet2DConditionModel",), dtype, device, variant)
    vae_part = load_component(folder, "vae", ("AutoencoderKL", "AutoencoderTiny"), dtype, device, variant)
    names = listed_encoders(index)
    encoders = tuple(
        load_component(folder, name, ("CLIPTextModel", "CLIPTextModelWithProjection"), dtype, device, variant)
        for name in names
    )
    check_context(unet_part.config, encoders)
    return Model(
        name=folder.name,
        architecture=model_architecture(unet_part.config, len(encoders), unet_part.config.cross_attention_dim == 1024),
        unet=unet_part,
        vae=vae_part,
        text_encoders=encoders,
        tokenizers=read_tokenizers(folder, names, encoders, tokenizer),
        scheduler=read_scheduler(folder),
        force_zeros_for_empty_prompt=bool(
            index.get("force_zeros_for_empty_prompt", unet_part.config.added_dim is not None)
        ),
    )


def load_component(
    folder: Path,
    name: str,
    classes: tuple[str, ...],
    dtype: torch.dtype | None,
    device: torch.device,
    variant: str | None = None,
) -> Component[Any]:
    """One network of a folder; name "" is the folder itself. Raises ModelLoadError."""
    path = confined(folder, name)
    kind, config = network_config(folder, name, classes)
    config_type, tensor_shapes = NETWORKS[kind]
    parsed = config_type.from_dict(config, f"{name}/config.json" if name else "config.json")
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(path, name, variant):
        shown = f"{name}/{file.name}" if name else file.name
        for key, tensor in read_stored(file, shown, dtype):
            tensors[_published_name(key, kind)] = tensor
    kept = checked(tensors, tensor_shapes(parsed), name or folder.name)
    return Component(parsed, in_dtype(kept, dtype, device), name or folder.name)


def network_config(folder: Path, name: str, classes: tuple[str, ...]) -> tuple[str, Mapping[str, object]]:
    """Class and configuration of a network of a folder; name "" is the folder itself. Raises ModelLoadError."""
    label = f"{name}/config.json" if name else "config.json"
    config = read_json(confined(folder, name) / "config.json", label)
    kind = _class_name(config, label)
    if kind not in classes:
        raise ModelLoadError(label, f"is of class {ascii(kind)[:60]}, wants one of {', '.join(classes)}")
    return kind, {**config, "architectures": [kind]} if kind.startswith("CLIP") else config


def checked(tensors: Mapping[str, Tensor], expected: Shapes, name: str) -> Mapping[str, Tensor]:
    """`tensors` without harmless extras. Raises ModelLoadError for missing, unexpected and wrongly shaped or typed ones."""
    kept = {key: value for key, value in tensors.items() if not key.endswith(_HARMLESS)}
    for key, shape in expected.items():
        if key not in kept:
            count = sum(1 for wanted in expected if wanted not in kept)
            raise ModelLoadError(name, f"is missing ({count} of {len(expected)} tensors are)", key)
        if tuple(kept[key].shape) != shape:
            raise ModelLoadError(name, f"has shape {list(kept[key].shape)}, the configuration wants {list(shape)}", key)
        if not kept[key].is_floating_point():
            raise ModelLoadError(
                name, f"is of type {str(kept[key].dtype).removeprefix('torch.')}, wants a float type", key
            )
    for key in kept:
        if key not in expected:
            raise ModelLoadError(name, "is not part of this network", key[:120])
    return kept


def confined(folder: Path, name: str) -> Path:
    """`folder`/`name` if it lies inside the folder once links are followed. Raises ModelLoadError."""
    path = folder / name
    if not path.resolve().is_relative_to(_root(folder).resolve()):
        raise ModelLoadError(ascii(name)[1:-1][:120], "lies outside the model folder")
    return path


def _root(folder: Path) -> Path:
    """The folder itself; in the Hugging Face cache its repository, whose snapshots are links into it."""
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            return parent.parent.parent
    return folder


def listed_encoders(index: Mapping[str, object]) -> list[str]:
    """The text encoders that a model_index.json lists, at least one. Raises ModelLoadError."""
    names = [name for name in ("text_encoder", "text_encoder_2") if _listed(index, name)]
    if not names:
        raise ModelLoadError("model_index.json", "lists no text encoder")
    return names


def _listed(index: Mapping[str, object], name: str) -> bool:
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and entry[0] is not None


def _class_name(config: Mapping[str, object], label: str) -> str:
    """diffusers writes `_class_name`, transformers a list `architectures`."""
    architectures = config.get("architectures")
    name = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else None
    )
    if not isinstance(name, str) or name not in NETWORKS:
        raise ModelLoadError(label, f"names no known class: {ascii(name)[:60]}")
    return name


def _published_name(key: str, kind: str) -> str:
    """Text encoders are also saved without their `text_model.` prefix, autoencoders with older names of attention."""
    if kind == "AutoencoderKL" and ".attentions." in key:
        module, _, parameter = key.rpartition(".")
        path, _, projection = module.rpartition(".")
        return f"{path}.{_OLD_PROJECTIONS.get(projection, projection)}.{parameter}"
    if kind.startswith("CLIPText") and key.split(".", 1)[0] in ("embeddings", "encoder", "final_layer_norm"):
        return f"text_model.{key}"
    return key


def _weight_files(path: Path, name: str, variant: str | None) -> list[Path]:
    suffix = f".{variant}" if variant else ""
    for stem in _FILES:
        single = path / f"{stem}{suffix}.safetensors"
        if single.exists():
            return [confined(path, single.name)]
        index = path / f"{stem}.safetensors.index{suffix}.json"
        if index.exists():
            return _shards(path, index)
    pickles = sorted(file.name for pattern in ("*.bin", "*.ckpt", "*.pt") for file in path.glob(pattern))
    reason = "has no safetensors weights" + (f" of variant {variant!r}" if variant else "")
    if pickles:
        reason += f", only {pickles[0]}: save them with `save_pretrained(..., safe_serialization=True)`"
    raise ModelLoadError(name or path.name, reason)


def _shards(path: Path, index: Path) -> list[Path]:
    entries = read_json(index, index.name).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise ModelLoadError(index.name, "has no weight_map of tensor names to files")
    files = sorted(set(entries.values()))
    for file in files:
        if Path(file).name != file or not (path / file).is_file():
            raise ModelLoadError(index.name, f"names a shard that is not in the folder: {ascii(file)[:120]}")
    return [confined(path, file) for file in files]


def model_architecture(config: UNetConfig, encoders: int, open_clip: bool) -> str:
    """ "sd1", "sd2" or "sdxl". open_clip: whether the first text encoder is OpenCLIP's."""
    if config.added_dim is not None or encoders > 1:
        return "sdxl"
    return "sd2" if open_clip else "sd1"


def check_context(config: UNetConfig, encoders: tuple[Component[Any], ...]) -> None:
    """Raises ModelLoadError where the text encoders do not give what the U-Net reads."""
    width = sum(encoder.config.width for encoder in encoders)
    if width != config.cross_attention_dim:
        raise ModelLoadError(
            "unet/config.json", f"cross_attention_dim {config.cross_attention_dim}, text encoders give {width}"
        )


def read_scheduler(folder: Path) -> Mapping[str, object]:
    """The scheduler's configuration with its `_class_name`. Raises ModelLoadError."""
    label = "scheduler/scheduler_config.json"
    config = dict(read_json(confined(folder, "scheduler") / "scheduler_config.json", label))
    if str(config.get("_class_name")) not in SCHEDULER_CLASSES:
        raise ModelLoadError(label, f"names no known scheduler: {ascii(config.get('_class_name'))[:60]}")
    try:
        resolve_scheduler(None, {**config, **dict.fromkeys(NOT_LINEAR, False)}).build()
    except RequestError as problem:
        raise ModelLoadError(label, str(problem)) from problem
    return config


def read_tokenizers(
    folder: Path, names: Sequence[str], encoders: Sequence[Component[Any]], given: str | Path | None
) -> tuple[Any, ...]:
    """One per text encoder, whose names they are found by. given: a folder instead of them. Raises ModelLoadError."""
    places = [name.replace("text_encoder", "tokenizer") for name in names]
    found = tuple(read_tokenizer(confined(folder, place) if given is None else Path(given), place) for place in places)
    check_vocabularies(found, tuple(encoder.config.vocab_size for encoder in encoders))
    return found
