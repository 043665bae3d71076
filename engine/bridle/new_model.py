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
from bridle.networks import image_projection
from bridle.networks.configs import (
    ImageProjectionConfig,
    LinearProjectionConfig,
    MlpProjectionConfig,
    ResamplerConfig,
    UNetConfig,
    VisionConfig,
)
from bridle.networks.configs.image_projection import RESAMPLER_HEAD_DIM
from bridle.weights import ip_adapter_keys
from bridle.weights.folder import NETWORKS
from bridle.weights.tokenizers import byte_symbols

IP_ADAPTERS = ("base", "plus", "full")
_MARKERS = ("<|startoftext|>", "<|endoftext|>")


def write_new_model(
    arch: str,
    folder: str | Path,
    *,
    seed: int = 0,
    controlnet: bool = False,
    t2i: bool = False,
    ip_adapter: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: bool = False,
) -> None:
    """Writes a complete diffusers folder; the same seed gives the same bytes on the same kind of device.

    arch: "sd15", "sd21", "sdxl", "tiny" or "tiny-xl". controlnet, t2i: also DIR/controlnet and DIR/t2i-adapter.
    ip_adapter: "base", "plus" or "full", also DIR/ip-adapter/ip-adapter.safetensors and its image_encoder beside it. device:
    where the numbers are drawn; on a GPU in `dtype` itself, which is seconds where a CPU takes minutes. One network is in
    memory at a time. Raises RequestError, also when the folder exists and is not empty.
    """
    if arch not in ARCHITECTURES:
        raise RequestError("arch", arch, "one of " + ", ".join(ARCHITECTURES))
    if ip_adapter is not None and ip_adapter not in IP_ADAPTERS:
        raise RequestError("ip_adapter", ip_adapter, "one of " + ", ".join(IP_ADAPTERS))
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise RequestError("folder", root.name, "a folder that does not exist or is empty")
    architecture = ARCHITECTURES[arch]
    parts = _parts(architecture, controlnet, t2i)
    if ip_adapter is not None:
        parts["ip-adapter/image_encoder"] = architecture.image_encoder
    for index, (name, config) in enumerate(tqdm(parts.items(), disable=not progress, unit="network")):
        _write_network(root / name, config, _Weights(seed * 1000 + index, dtype, device))
    if ip_adapter is not None:
        _write_ip_adapter(
            root / "ip-adapter", ip_adapter, architecture, _Weights(seed * 1000 + len(parts), dtype, device)
        )
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


def _write_network(folder: Path, config: Config, weights: "_Weights") -> None:
    architectures = config.get("architectures")
    kind = str(architectures[0] if isinstance(architectures, list) else config["_class_name"])
    config_type, tensor_shapes = NETWORKS[kind]
    shapes: Mapping[str, tuple[int, ...]] = tensor_shapes(config_type.from_dict(config, f"{folder.name}/config.json"))
    tensors = weights.drawn(shapes)
    _write_json(folder / "config.json", config)
    file = "model" if kind.startswith("CLIP") else "diffusion_pytorch_model"
    save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})


def _write_ip_adapter(folder: Path, kind: str, architecture: Architecture, weights: "_Weights") -> None:
    """In the official format."""
    unet = UNetConfig.from_dict(architecture.unet, "unet/config.json")
    encoder = VisionConfig.from_dict(architecture.image_encoder, "image_encoder/config.json")
    config, modules = _image_projection(kind, unet.cross_attention_dim, encoder)
    shapes = {**image_projection.tensor_shapes(config), **ip_adapter_keys.attention_shapes(unet)}
    official = ip_adapter_keys.to_file(weights.drawn(shapes), ip_adapter_keys.official_keys(unet, modules))
    save_file(official, folder / "ip-adapter.safetensors", metadata={"format": "pt"})


def _image_projection(
    kind: str, context_dim: int, encoder: VisionConfig
) -> tuple[ImageProjectionConfig, Mapping[str, str]]:
    """The published projection of that kind and its official module paths."""
    if kind == "base":
        dim = encoder.projection_dim
        return LinearProjectionConfig(image_dim=dim, context_dim=context_dim, tokens=4), ip_adapter_keys.LINEAR
    if kind == "full":
        return MlpProjectionConfig(image_dim=encoder.width, context_dim=context_dim), ip_adapter_keys.MLP
    width, depth = min(context_dim, 1280), 4
    config = ResamplerConfig(
        image_dim=encoder.width,
        context_dim=context_dim,
        tokens=16,
        width=width,
        mlp_width=4 * width,
        heads=max(1, width // RESAMPLER_HEAD_DIM),
        depth=depth,
    )
    return config, ip_adapter_keys.resampler_modules(depth)


class _Weights:
    """Of one network. Weights of variance 1 / fan-in, norm scales around 1, biases around 0: activations stay near one."""

    def __init__(self, seed: int, dtype: torch.dtype, device: str) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._dtype = dtype
        self._drawing = torch.float32 if device == "cpu" else dtype

    def drawn(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """On the device that draws; on a CPU always in float32 first, so that dtypes hold the same numbers."""
        return {name: self._random(name, shape).to(self._dtype) for name, shape in shapes.items()}

    def _random(self, name: str, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=self._generator, dtype=self._drawing, device=self._generator.device)
        if len(shape) > 1:
            table = "embedding" in name and not any(part in name for part in ("time", "add", "patch", "cond"))
            fan_in = 1 if table else noise[0].numel()
            return noise.div_(math.sqrt(fan_in))
        return noise.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)


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
