"""Exported folders: ONNX graphs in the place of weights, in the layout of optimum's diffusion pipelines."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bridle.errors import ModelLoadError
from bridle.networks.configs.fields import Fields
from bridle.weights.folder import (
    NETWORKS,
    check_context,
    confined,
    listed_encoders,
    model_architecture,
    network_config,
    read_scheduler,
    read_tokenizers,
)
from bridle.weights.json_file import read_json
from bridle.weights.model import Component, ExportedProjection, IPAdapter, Model


class ExportedWeights(Mapping[str, Tensor]):
    """Weights that are in graphs: none of them can be had by name.

    folder: where the graphs of the network are. label: how messages call it.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.folder = folder
        self.label = label

    def __getitem__(self, name: str) -> Tensor:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def is_exported(folder: Path) -> bool:
    """Whether a folder has a U-Net's graph and no weights of it."""
    return _has_graph(folder) and not any((folder / "unet").glob("*.safetensors*"))


def _has_graph(folder: Path) -> bool:
    return any((folder / "unet").glob("*.onnx"))


def load_exported(folder: Path, tokenizer: str | Path | None) -> Model:
    """The model of an exported folder; its graphs are not opened. Raises ModelLoadError.

    tokenizer: a folder instead of the model's own.
    """
    index = read_json(folder / "model_index.json", "model_index.json")
    if not _has_graph(folder):
        raise ModelLoadError("unet/denoise.onnx", "is missing: `bridle export` writes it")
    unet = exported_component(folder, "unet", ("UNet2DConditionModel",))
    names = listed_encoders(index)
    encoders = tuple(
        exported_component(folder, name, ("CLIPTextModel", "CLIPTextModelWithProjection")) for name in names
    )
    check_context(unet.config, encoders)
    return Model(
        name=folder.name,
        architecture=model_architecture(unet.config, len(encoders), unet.config.cross_attention_dim == 1024),
        unet=unet,
        vae=exported_component(folder, "vae_decoder", ("AutoencoderKL", "AutoencoderTiny")),
        text_encoders=encoders,
        tokenizers=read_tokenizers(folder, names, encoders, tokenizer),
        scheduler=read_scheduler(folder),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", unet.config.added_dim is not None)),
        exported=True,
    )


def exported_component(folder: Path, name: str, classes: tuple[str, ...]) -> Component[Any]:
    """One network of a folder, "" is the folder itself: its configuration, and where its graph is. Raises ModelLoadError."""
    label = f"{name}/config.json" if name else "config.json"
    kind, config = network_config(folder, name, classes)
    shown = name or folder.name
    return Component(NETWORKS[kind][0].from_dict(config, label), ExportedWeights(confined(folder, name), shown), shown)


def exported_ip_adapter(folder: Path, base: Model) -> IPAdapter:
    """An IP-Adapter of an exported folder, which its image encoder is inside of. Raises ModelLoadError."""
    label = f"{folder.name}/config.json"
    config = read_json(folder / "config.json", label)
    fields = Fields(config, label)
    kind = fields.choice("kind", "", ("base", "plus", "full"))
    encoder = exported_component(folder, "image_encoder", ("CLIPVisionModelWithProjection",))
    weights = ExportedWeights(folder, folder.name)
    if kind is None or not isinstance(config.get("tokens"), int):
        raise ModelLoadError(label, "wants a kind and a number of tokens")
    projection = ExportedProjection(kind=kind, tokens=fields.integer("tokens", 1))
    return IPAdapter(Component(projection, weights, folder.name), weights, encoder, folder / "image_encoder")
