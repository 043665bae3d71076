"""Configuration of T2I-Adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from bridle.networks.configs.fields import MAX_DEPTH, Fields

_TYPES = ("full_adapter", "light_adapter", "full_adapter_xl")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """T2I-Adapter (diffusers `T2IAdapter`).

    kind: "full_adapter", "light_adapter" or "full_adapter_xl". in_channels: channels of the control image.
    channels: of the feature maps; a light adapter has one map more than entries, as wide as the last.
    downscale: factor of the pixel unshuffle.
    """

    kind: str
    in_channels: int
    channels: tuple[int, ...]
    layers: int
    downscale: int

    @classmethod
    def from_dict(cls, config: Mapping[str, object], file: str) -> Self:
        """Reads a `config.json`. Raises ModelLoadError naming `file` and the field at fault."""
        fields = Fields(config, file)
        kind = fields.choice("adapter_type", "full_adapter", _TYPES) or "full_adapter"
        channels = fields.integers("channels", (320, 640, 1280, 1280))
        if kind == "light_adapter" and any(width % 4 for width in channels):
            fields.refuse("channels", "multiples of 4 in a light adapter")
        if kind == "full_adapter_xl" and (len(channels) != 4 or channels[2] != channels[3]):
            fields.refuse("channels", "four widths of which the last two are equal in an XL adapter")
        return cls(
            kind=kind,
            in_channels=fields.integer("in_channels", 3),
            channels=channels,
            layers=fields.integer("num_res_blocks", 2, maximum=MAX_DEPTH),
            downscale=fields.integer("downscale_factor", 8, maximum=64),
        )
