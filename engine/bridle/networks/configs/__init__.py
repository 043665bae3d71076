"""Network configurations, read from the `config.json` of published model folders and validated field by field."""

from bridle.networks.configs.adapter import AdapterConfig
from bridle.networks.configs.text import TextConfig
from bridle.networks.configs.unet import ControlNetConfig, EncoderConfig, UNetConfig
from bridle.networks.configs.vae import TaesdConfig, VaeConfig

__all__ = [
    "AdapterConfig",
    "ControlNetConfig",
    "EncoderConfig",
    "TaesdConfig",
    "TextConfig",
    "UNetConfig",
    "VaeConfig",
]
