"""Network configurations, read from the `config.json` of published model folders and validated field by field."""

from bridle.networks.configs.adapter import AdapterConfig
from bridle.networks.configs.clip import ClipConfig
from bridle.networks.configs.image_projection import (
    ImageProjectionConfig,
    LinearProjectionConfig,
    MlpProjectionConfig,
    ResamplerConfig,
)
from bridle.networks.configs.text import TextConfig
from bridle.networks.configs.unet import ControlNetConfig, EncoderConfig, UNetConfig
from bridle.networks.configs.vae import TaesdConfig, VaeConfig
from bridle.networks.configs.vision import VisionConfig

__all__ = [
    "AdapterConfig",
    "ClipConfig",
    "ControlNetConfig",
    "EncoderConfig",
    "ImageProjectionConfig",
    "LinearProjectionConfig",
    "MlpProjectionConfig",
    "ResamplerConfig",
    "TaesdConfig",
    "TextConfig",
    "UNetConfig",
    "VaeConfig",
    "VisionConfig",
]
