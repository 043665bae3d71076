"""What the configurations of CLIP's text and image encoders share."""

from dataclasses import dataclass
from typing import Any

from bridle.networks.configs.fields import MAX_DEPTH, Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """The transformer of a CLIP encoder. activation: "quick_gelu" or "gelu"."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    activation: str
    eps: float


def clip_fields(fields: Fields, *, width: int, mlp_width: int, heads: int) -> dict[str, Any]:
    """The fields of ClipConfig; the arguments are the defaults of transformers, which differ between the encoders."""
    width = fields.integer("hidden_size", width)
    heads = fields.integer("num_attention_heads", heads)
    fields.divides("num_attention_heads", heads, (width,))
    return {
        "width": width,
        "mlp_width": fields.integer("intermediate_size", mlp_width),
        "layers": fields.integer("num_hidden_layers", 12, maximum=MAX_DEPTH),
        "heads": heads,
        "activation": fields.choice("hidden_act", "quick_gelu", ("quick_gelu", "gelu")) or "quick_gelu",
        "eps": fields.number("layer_norm_eps", 1e-5),
    }
