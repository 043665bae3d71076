"""Configuration of the CLIP text encoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from bridle.networks.configs.fields import MAX_DEPTH, Fields

MAX_VOCABULARY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """A CLIP text encoder (transformers `CLIPTextModel` and `CLIPTextModelWithProjection`; OpenCLIP has the same form).

    activation: "quick_gelu" or "gelu". projection_dim: width of the pooled output after the projection, None where the
    model has no projection. eos_token_id: token whose position is pooled; 2 means the position of the largest token id,
    which is what published files of that value were trained with.
    """

    vocab_size: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    max_tokens: int
    activation: str
    eps: float
    projection_dim: int | None
    eos_token_id: int

    @classmethod
    def from_dict(cls, config: Mapping[str, object], file: str) -> Self:
        """Reads a `config.json`. Raises ModelLoadError naming `file` and the field at fault."""
        fields = Fields(config, file)
        width = fields.integer("hidden_size", 512)
        heads = fields.integer("num_attention_heads", 8)
        fields.divides("num_attention_heads", heads, (width,))
        return cls(
            vocab_size=fields.integer("vocab_size", 49408, maximum=MAX_VOCABULARY),
            width=width,
            mlp_width=fields.integer("intermediate_size", 2048),
            layers=fields.integer("num_hidden_layers", 12, maximum=MAX_DEPTH),
            heads=heads,
            max_tokens=fields.integer("max_position_embeddings", 77),
            activation=fields.choice("hidden_act", "quick_gelu", ("quick_gelu", "gelu")) or "quick_gelu",
            eps=fields.number("layer_norm_eps", 1e-5),
            projection_dim=_projection_dim(fields),
            eos_token_id=fields.integer("eos_token_id", 49407, minimum=0, maximum=MAX_VOCABULARY),
        )


def _projection_dim(fields: Fields) -> int | None:
    """Files of encoders without a projection carry a `projection_dim` too: the class name decides."""
    architectures = fields.config.get("architectures")
    names = architectures if isinstance(architectures, (list, tuple)) else ()
    return fields.integer("projection_dim", 512) if "CLIPTextModelWithProjection" in names else None
