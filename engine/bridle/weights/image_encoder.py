"""The CLIP image encoder of an IP-Adapter: found beside the adapter's file, checked against its projection."""

from pathlib import Path

import torch

from bridle.errors import ModelLoadError
from bridle.networks.configs import ImageProjectionConfig, LinearProjectionConfig, VisionConfig
from bridle.weights.folder import load_component
from bridle.weights.json_file import read_json
from bridle.weights.model import Component

FOLDER = "image_encoder"


def find_image_encoder(adapter: Path, projection: ImageProjectionConfig) -> Path:
    """The folder of the encoder whose features the projection reads.

    Looked for are `image_encoder` beside the file `adapter`, above it, and in `models` above it, where h94/IP-Adapter
    keeps the encoder that its SDXL adapters for ViT-H share with those for SD 1.x. The first whose widths fit is taken.
    Raises ModelLoadError.
    """
    here = adapter.absolute().parent
    found = [path for path in (here / FOLDER, here.parent / FOLDER, here.parent / "models" / FOLDER) if path.is_dir()]
    if not found:
        raise ModelLoadError(adapter.name, f"has no folder '{FOLDER}' beside it or above it; name one (image_encoder)")
    for folder in found[:-1]:
        if _width(_config(folder), projection) == projection.image_dim:
            return folder
    check_image_encoder(found[-1], projection, adapter.name)
    return found[-1]


def check_image_encoder(folder: Path, projection: ImageProjectionConfig, adapter: str) -> None:
    """Raises ModelLoadError unless the projection of the file `adapter` reads features of this encoder."""
    width = _width(_config(folder), projection)
    if width != projection.image_dim:
        problem = f"gives features of width {width}, {adapter} wants {projection.image_dim}"
        raise ModelLoadError(f"{folder.name}/config.json", problem)


def load_image_encoder(folder: Path, dtype: torch.dtype | None, device: torch.device) -> Component[VisionConfig]:
    """Loads a folder of a `CLIPVisionModelWithProjection`. Raises ModelLoadError."""
    return load_component(folder, "", ("CLIPVisionModelWithProjection",), dtype, device)


def _config(folder: Path) -> VisionConfig:
    label = f"{folder.name}/config.json"
    return VisionConfig.from_dict(read_json(folder / "config.json", label), label)


def _width(config: VisionConfig, projection: ImageProjectionConfig) -> int:
    """A linear projection reads the image embedding, the others the hidden states."""
    return config.projection_dim if isinstance(projection, LinearProjectionConfig) else config.width
