"""Configuration of the CLIP image encoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from bridle.networks.configs.clip import ClipConfig, clip_fields
from bridle.networks.configs.fields import Fields

MAX_IMAGE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig(ClipConfig):
    """A CLIP image encoder (transformers `CLIPVisionModelWithProjection`; OpenCLIP has the same form).

    image_size: side in pixels of the square image that it reads. patch_size: side in pixels of a token. projection_dim:
    width of the image embedding.
    """

    image_size: int
    patch_size: int
    projection_dim: int

    @property
    def grid(self) -> int:
        """Patches along a side; pixels that do not fill a patch are left out."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Number of tokens: the class token and the patches."""
        return self.grid**2 + 1

    @classmethod
    def from_dict(cls, config: Mapping[str, object], file: str) -> Self:
        """Reads a `config.json`. Raises ModelLoadError naming `file` and the field at fault."""
        fields = Fields(config, file)
        fields.require({"num_channels": (3,)})
        image_size = fields.integer("image_size", 224, maximum=MAX_IMAGE)
        return cls(
            **clip_fields(fields, width=768, mlp_width=3072, heads=12),
            image_size=image_size,
            patch_size=fields.integer("patch_size", 32, maximum=image_size),
            projection_dim=fields.integer("projection_dim", 512),
        )
