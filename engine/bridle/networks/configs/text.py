"""Configuration of the CLIP text encoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from bridle.networks.configs.clip import ClipConfig, clip_fields
from bridle.networks.configs.fields import Fields

MAX_VOCABULARY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig(ClipConfig):
    """A CLIP text encoder (transformers `CLIPTextModel` and `CLIPTextModelWithProjection`; OpenCLIP has the same form).

    projection_dim: width of the pooled output after the projection, None where the model has no projection.
    eos_token_id: token whose position is pooled; 2 means the position of the largest token id, which is what published
    files of that value were trained with.
    """

    vocab_size: int
    max_tokens: int
    projection_dim: int | None
    eos_token_id: int

    @classmethod
    def from_dict(cls, config: Mapping[str, object], file: str) -> Self:
        """Reads a `config.json`. Raises ModelLoadError naming `file` and the field at fault."""
        fields = Fields(config, file)
        return cls(
            **clip_fields(fields, width=512, mlp_width=2048, heads=8),
            vocab_size=fields.integer("vocab_size", 49408, maximum=MAX_VOCABULARY),
            max_tokens=fields.integer("max_position_embeddings", 77),
            projection_dim=_projection_dim(fields),
            eos_token_id=fields.integer("eos_token_id", 49407, minimum=0, maximum=MAX_VOCABULARY),
        )


def _projection_dim(fields: Fields) -> int | None:
    """Files of encoders without a projection carry a `projection_dim` too: the class name decides."""
    architectures = fields.config.get("architectures")
    names = architectures if isinstance(architectures, (list, tuple)) else ()
    return fields.integer("projection_dim", 512) if "CLIPTextModelWithProjection" in names else None
