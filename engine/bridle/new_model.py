"""Model folders of random weights in a published architecture, for tests and benchmarks. No layer is left at zero."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from bridle.architectures import ARCHITECTURES, Architecture, Config, adapter_config, controlnet_config
from bridle.errors import RequestError
from bridle.weights.folder import NETWORKS
from bridle.weights.tokenizers import byte_symbols

_MARKERS = ("<|startoftext|>", "<|endoftext|>")


def write_new_model(
    arch: str,
    folder: str | Path,
    *,
    seed: int = 0,
    controlnet: bool = False,
    t2i: bool = False,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> None:
    """Writes a complete diffusers folder; the same seed gives the same bytes.

    arch: "sd15", "sd21", "sdxl", "tiny" or "tiny-xl". controlnet, t2i: also DIR/controlnet and DIR/t2i-adapter. One
    network is in memory at a time. Raises RequestError, also when the folder exists and is not empty.
    """
    if arch not in ARCHITECTURES:
        raise RequestError("arch", arch, "one of " + ", ".join(ARCHITECTURES))
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise RequestError("folder", root.name, "a folder that does not exist or is empty")
    architecture = ARCHITECTURES[arch]
    parts = _parts(architecture, controlnet, t2i)
    for index, (name, config) in enumerate(tqdm(parts.items(), disable=not progress, unit="network")):
        _write_network(root / name, config, seed * 1000 + index, dtype)
    for index in range(len(architecture.text_encoders)):
        _write_tokenizer(root / ("tokenizer" if index == 0 else f"tokenizer_{index + 1}"))
    _write_json(root / "scheduler" / "scheduler_config.json", architecture.scheduler)
    _write_json(root / "model_index.json", _model_index(architecture))


def _parts(architecture: Architecture, controlnet: bool, t2i: bool) -> dict[str, Config]:
    parts = {"unet": architecture.unet, "vae": architecture.vae}
    markers = {"bos_token_id": len(_vocabulary()) - 2, "eos_token_id": len(_vocabulary()) - 1}
    for index, config in enumerate(architecture.text_encoders):
        name = "text_encoder" if index == 0 else f"text_encoder_{index + 1}"
        parts[name] = {**config, **markers, "pad_token_id": markers["eos_token_id"]}
    if controlnet:
        parts["controlnet"] = controlnet_config(architecture.unet)
    if t2i:
        parts["t2i-adapter"] = adapter_config(architecture.unet)
    return parts


def _write_network(folder: Path, config: Config, seed: int, dtype: torch.dtype) -> None:
    architectures = config.get("architectures")
    kind = str(architectures[0] if isinstance(architectures, list) else config["_class_name"])
    config_type, tensor_shapes = NETWORKS[kind]
    generator = torch.Generator().manual_seed(seed)
    shapes: Mapping[str, tuple[int, ...]] = tensor_shapes(config_type.from_dict(config, f"{folder.name}/config.json"))
    tensors = {name: _random(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    _write_json(folder / "config.json", config)
    file = "model" if kind.startswith("CLIP") else "diffusion_pytorch_model"
    save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights of variance 1 / fan-in, norm scales around 1, biases around 0: activations stay near one."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        fan_in = noise[0].numel() if "embedding" not in name or "time" in name or "add" in name else 1
        return noise / math.sqrt(fan_in)
    return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)


def _model_index(architecture: Architecture) -> Config:
    index: dict[str, object] = {
        "_class_name": architecture.pipeline,
        "_diffusers_version": "0.42.1",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", architecture.scheduler["_class_name"]],
    }
    for place, config in enumerate(architecture.text_encoders):
        suffix = "" if place == 0 else f"_{place + 1}"
        kinds = config["architectures"]
        assert isinstance(kinds, list)
        index[f"text_encoder{suffix}"] = ["transformers", kinds[0]]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
    if len(architecture.text_encoders) == 1:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    else:
        index["force_zeros_for_empty_prompt"] = True
    return index


def _write_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer without merges: every byte is a token, so that any text has tokens of its own."""
    folder.mkdir(parents=True)
    _write_json(folder / "vocab.json", {token: index for index, token in enumerate(_vocabulary())})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    start, end = _MARKERS
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }
    _write_json(folder / "tokenizer_config.json", config)


def _vocabulary() -> list[str]:
    """A symbol for each byte, each also as a word's end, then the markers."""
    symbols = byte_symbols()
    return [*symbols, *(symbol + "</w>" for symbol in symbols), *_MARKERS]


def _write_json(path: Path, value: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
