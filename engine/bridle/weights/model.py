"""What a loaded model is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from bridle.networks.configs import (
    ImageProjectionConfig,
    LinearProjectionConfig,
    MlpProjectionConfig,
    TaesdConfig,
    TextConfig,
    UNetConfig,
    VaeConfig,
    VisionConfig,
)

Config = TypeVar("Config", covariant=True)


@dataclass(frozen=True, slots=True)
class Component(Generic[Config]):
    """One network: its configuration, its tensors under their published names, and where they came from."""

    config: Config
    tensors: Mapping[str, Tensor]
    file: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be sampled. architecture: "sd1", "sd2" or "sdxl". scheduler: its configuration with `_class_name`.

    tokenizers: one transformers CLIPTokenizer per text encoder. force_zeros_for_empty_prompt: SDXL's rule for a
    missing negative prompt. exported: whether its networks are ONNX graphs, `weights.exported.ExportedWeights`.
    """

    name: str
    architecture: str
    unet: Component[UNetConfig]
    vae: Component[VaeConfig] | Component[TaesdConfig]
    text_encoders: tuple[Component[TextConfig], ...]
    tokenizers: tuple[Any, ...]
    scheduler: Mapping[str, object]
    force_zeros_for_empty_prompt: bool
    exported: bool = False


@dataclass(frozen=True, slots=True)
class ExportedProjection:
    """All that is known of an image projection inside a graph. kind: "base", "plus" or "full"."""

    kind: str
    tokens: int


@dataclass(frozen=True, slots=True)
class IPAdapter:
    """An IP-Adapter that fits a base U-Net.

    attention: weights of its keys and values [heads * dim, cross_attention_dim] at every cross-attention, under the names
    of the base's own (`<site>.to_k.weight`), so that `unet.cross_kv` reads them. image_encoder_folder: where the encoder
    was loaded from.
    """

    projection: Component[ImageProjectionConfig] | Component[ExportedProjection]
    attention: Mapping[str, Tensor]
    image_encoder: Component[VisionConfig]
    image_encoder_folder: Path

    @property
    def kind(self) -> str:
        """ "base", "plus" (plus-face too) or "full"."""
        if isinstance(self.projection.config, ExportedProjection):
            return self.projection.config.kind
        if isinstance(self.projection.config, LinearProjectionConfig):
            return "base"
        return "full" if isinstance(self.projection.config, MlpProjectionConfig) else "plus"

    @property
    def tokens(self) -> int:
        """Number of tokens that one image becomes."""
        config = self.projection.config
        return self.image_encoder.config.tokens if isinstance(config, MlpProjectionConfig) else config.tokens
