"""What a loaded model is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from bridle.networks.configs import TaesdConfig, TextConfig, UNetConfig, VaeConfig

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
    missing negative prompt.
    """

    name: str
    architecture: str
    unet: Component[UNetConfig]
    vae: Component[VaeConfig] | Component[TaesdConfig]
    text_encoders: tuple[Component[TextConfig], ...]
    tokenizers: tuple[Any, ...]
    scheduler: Mapping[str, object]
    force_zeros_for_empty_prompt: bool
