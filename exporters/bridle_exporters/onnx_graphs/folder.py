"""A model as a folder of ONNX graphs: complete, or not there."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bridle.errors import ExportError, RequestError
from bridle.networks import unet
from bridle.weights import (
    Component,
    IPAdapter,
    Model,
    load_adapter,
    load_controlnet,
    load_ip_adapter,
    load_model,
    locate,
)
from bridle.weights.control_kind import control_kind
from bridle_exporters.onnx_graphs import networks, variants
from bridle_exporters.onnx_graphs.graph import Graph
from bridle_exporters.onnx_graphs.weights_file import WeightsFile

MANIFEST = "bridle_export.json"
FORMAT = 1
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
OPSETS = (23, 24)
DEFAULT_OPSET = 23
_SPARE_BYTES = 64 * 2**20
_COPIED = ("model_index.json", "scheduler", "tokenizer", "tokenizer_2", "feature_extractor")
Write = Callable[[Graph], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of the export: its graphs by file name, their weights, and its config.json."""

    name: str
    weights: Mapping[str, Tensor]
    graphs: Mapping[str, Write]
    config: Mapping[str, object]
    dtype: torch.dtype


def export(
    model: str | Path,
    out: str | Path,
    *,
    controls: Sequence[str | Path] = (),
    features: Sequence[str] = (),
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
    progress: bool = False,
) -> None:
    """Writes the ONNX folder `out` that docs/onnx.md describes.

    model: a diffusers folder. controls: folders of ControlNets and T2I-Adapters, and IP-Adapters as .safetensors files or
    folders that hold one. features: any of "residuals", "regions" and "maps", the optional inputs of the U-Net.
    precision: "fp32" or "fp16". opset: of the standard operators. Raises RequestError, ModelLoadError, and ExportError
    where the disk is too small or cannot be written to. Nothing is left of an export that fails or is interrupted from
    the keyboard; a process that is killed leaves a hidden folder `.OUT.*` beside `out`, which itself is never there
    half-made.
    """
    target = Path(out)
    _check(target, features, precision, opset)
    source = _folder_of(model)
    loaded = load_model(source)
    parts = _parts(loaded, source, [Path(c) for c in controls], tuple(features), PRECISIONS[precision])
    _check_space(target, parts)
    with _becoming(target) as staging:
        for name in _COPIED:
            _copy(source / name, staging / name)
        _complete_tokenizers(staging)
        described = [_write_part(staging, part, opset) for part in tqdm(parts, disable=not progress, unit="network")]
        _write_json(staging / MANIFEST, _manifest(loaded, parts, described, features, precision, opset))


@contextmanager
def _becoming(target: Path) -> Iterator[Path]:
    """A folder that takes the name `target` at the end, and is removed where that is not reached. Raises ExportError."""
    prefix, parent = f".{target.name}.", target.absolute().parent
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as staging:
            yield Path(staging)
            os.chmod(staging, 0o755)
            os.replace(staging, target)
    except OSError as problem:
        raise ExportError(target.name, f"cannot be written: {problem.strerror or problem}") from problem


def _check(target: Path, features: Sequence[str], precision: str, opset: int) -> None:
    unknown = [feature for feature in features if feature not in networks.FEATURES]
    if unknown:
        raise RequestError("features", unknown[0], "any of " + ", ".join(networks.FEATURES))
    if precision not in PRECISIONS:
        raise RequestError("precision", precision, "one of " + ", ".join(PRECISIONS))
    if opset not in OPSETS:
        raise RequestError("opset", opset, "one of " + ", ".join(map(str, OPSETS)))
    if not target.absolute().parent.is_dir():
        raise RequestError("out", target.name, "a folder inside one that exists")
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise RequestError("out", target.name, "a folder that does not exist or is empty, and no link")


def _folder_of(model: str | Path) -> Path:
    found = locate(model)
    if found.is_file():
        raise RequestError("model", found.name, "a diffusers folder, whose configurations are copied")
    return found


def _parts(
    model: Model, source: Path, controls: Sequence[Path], features: tuple[str, ...], dtype: torch.dtype
) -> list[Part]:
    parts = [_text_part(source, index, encoder, dtype) for index, encoder in enumerate(model.text_encoders)]
    parts.append(_unet_part(source, model.unet, features, dtype))
    config = _read(source / "vae")
    own = torch.float32 if config.get("force_upcast", True) else dtype
    for name, write in (("vae_encoder", networks.vae_encoder), ("vae_decoder", networks.vae_decoder)):
        parts.append(Part(name, model.vae.tensors, {"model": partial(write, component=model.vae)}, config, own))
    for control in controls:
        parts += _control_parts(model, control, dtype)
    names = [part.name for part in parts]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise RequestError("controls", twice[0], "controls whose folders have different names")
    return parts


def _text_part(source: Path, index: int, encoder: Component[Any], dtype: torch.dtype) -> Part:
    name = "text_encoder" if index == 0 else f"text_encoder_{index + 1}"
    graphs = {
        "model": partial(networks.text_encoder, component=encoder),
        "final_norm": partial(networks.final_norm, component=encoder),
    }
    return Part(name, encoder.tensors, graphs, _read(source / name), dtype)


def _unet_part(source: Path, component: Component[Any], features: tuple[str, ...], dtype: torch.dtype) -> Part:
    graphs = {
        "model": partial(networks.whole_unet, component=component, features=features),
        "denoise": partial(networks.denoiser, component=component, features=features),
        "time_table": partial(networks.time_table, component=component),
        "cross_kv": partial(networks.cross_kv, component=component),
    }
    return Part("unet", component.tensors, graphs, _read(source / "unet"), dtype)


def _control_parts(model: Model, control: Path, dtype: torch.dtype) -> list[Part]:
    found, cpu = locate(control), torch.device("cpu")
    name = _name_of(control, found)
    if found.is_file() or not (found / "config.json").is_file():
        return _ip_adapter_parts(load_ip_adapter(found, dtype=None, device=cpu, base=model), model, name, dtype)
    config = _read(found)
    if control_kind(found) == "T2IAdapter":
        adapter = load_adapter(found, dtype=None, device=cpu, base=model)
        graphs: dict[str, Write] = {"model": partial(networks.t2i_adapter, component=adapter)}
        return [Part(f"t2i_adapter/{name}", adapter.tensors, graphs, config, dtype)]
    net = load_controlnet(found, dtype=None, device=cpu, base=model)
    graphs = {
        "model": partial(networks.whole_controlnet, component=net),
        "denoise": partial(networks.control_denoiser, component=net),
        "hint": partial(networks.hint, component=net),
        "time_table": partial(networks.time_table, component=net),
        "cross_kv": partial(networks.cross_kv, component=net),
    }
    return [Part(f"controlnet/{name}", net.tensors, graphs, config, dtype)]


def _name_of(control: Path, found: Path) -> str:
    """Of a control's folder or file; of an id in the cache, whose folder is named by a hash, what follows its owner."""
    named = Path(os.path.abspath(control))
    return named.stem if found.is_file() else named.name


def _ip_adapter_parts(adapter: IPAdapter, model: Model, own: str, dtype: torch.dtype) -> list[Part]:
    name = f"ip_adapter/{own}"
    weights = {**adapter.projection.tensors, **adapter.attention}
    graphs: dict[str, Write] = {
        "model": partial(networks.image_tokens, adapter=adapter),
        "cross_kv": partial(networks.kv_outputs, config=model.unet.config, tensors=adapter.attention),
    }
    config = {"_class_name": "IPAdapter", "kind": adapter.kind, "tokens": adapter.tokens}
    encoder: dict[str, Write] = {"model": partial(networks.image_encoder, adapter=adapter)}
    return [
        Part(name, weights, graphs, config, dtype),
        Part(
            f"{name}/image_encoder", adapter.image_encoder.tensors, encoder, _read(adapter.image_encoder_folder), dtype
        ),
    ]


def _check_space(target: Path, parts: Sequence[Part]) -> None:
    needed = _SPARE_BYTES + sum(t.numel() * part.dtype.itemsize for part in parts for t in part.weights.values())
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise ExportError(target.name, f"needs {needed >> 20} MiB, {free >> 20} MiB are free")


def _write_part(root: Path, part: Part, opset: int) -> dict[str, Any]:
    """Returns what the manifest says about the folder's graphs."""
    folder = root / part.name
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", part.config)
    with WeightsFile(folder) as file:
        for name, write in part.graphs.items():
            graph = Graph(part.dtype, part.weights, file)
            write(graph)
            graph.save(folder / f"{name}.onnx", opset)
    found = {}
    for name in part.graphs:
        found[name] = {"variants": variants.write(folder, name), **_signature(folder / f"{name}.onnx")}
    return found


def _signature(path: Path) -> dict[str, Any]:
    graph = onnx.load(str(path), load_external_data=False).graph
    defaults = {tensor.name for tensor in graph.initializer}
    return {
        "inputs": {i.name: _described(i) for i in graph.input if i.name not in defaults},
        "optional_inputs": {i.name: _described(i) for i in graph.input if i.name in defaults},
        "outputs": {o.name: _described(o) for o in graph.output},
    }


def _described(info: Any) -> dict[str, Any]:
    kind = info.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return {"dtype": dtype, "shape": [size.dim_param or size.dim_value for size in kind.shape.dim]}


def _manifest(
    model: Model,
    parts: Sequence[Part],
    described: Sequence[Mapping[str, Any]],
    features: Sequence[str],
    precision: str,
    opset: int,
) -> dict[str, Any]:
    sites = unet.attention_sites(model.unet.config)
    return {
        "format": FORMAT,
        "architecture": model.architecture,
        "precision": precision,
        "opset": opset,
        "features": list(features),
        "variant_steps": variants.STEPS,
        "cross_attentions": [{"name": s.name, "level": s.level, "heads": s.heads, "dim": s.dim} for s in sites],
        "adapter_points": list(unet.adapter_points(model.unet.config)),
        "graphs": {part.name: graphs for part, graphs in zip(parts, described, strict=True)},
    }


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)


def _complete_tokenizers(root: Path) -> None:
    """The vocabulary and merges as files of their own: what transformers before 5 reads of a CLIP tokenizer."""
    for folder in (root / "tokenizer", root / "tokenizer_2"):
        if (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").exists():
            model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
            merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
            (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def _read(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
