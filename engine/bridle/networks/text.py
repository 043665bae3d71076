"""The CLIP text encoders."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bridle.networks import layers, shapes
from bridle.networks.clip_layer import clip_layer, clip_layer_shapes
from bridle.networks.configs import TextConfig
from bridle_kernels.ops import Ops

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class TextOutput:
    """hidden: [R, N, width] token features. pooled: [R, P] feature of the end token, projected if the model projects."""

    hidden: Tensor
    pooled: Tensor


def tensor_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network under its published transformers name (with `text_model.`)."""
    width = config.width
    expected: shapes.Shapes = {
        "text_model.embeddings.token_embedding.weight": (config.vocab_size, width),
        "text_model.embeddings.position_embedding.weight": (config.max_tokens, width),
    }
    for index in range(config.layers):
        expected |= clip_layer_shapes(config, _layer(index))
    expected |= shapes.norm("text_model.final_layer_norm", width)
    if config.projection_dim is not None:
        expected["text_projection.weight"] = (config.projection_dim, width)
    return expected


def clip_text(
    ops: Ops, weights: Weights, config: TextConfig, token_ids: Tensor, skip: int = 0, final_norm: bool = True
) -> TextOutput:
    """Features of token ids [R, N] int64, N at most `max_tokens`.

    skip: layers left out at the end for `hidden` (1 is SDXL's penultimate layer). final_norm: whether `hidden` passes
    the final normalisation. `pooled` always comes from the last layer, normalised. Raises ValueError for a bad skip.
    """
    if not 0 <= skip < config.layers:
        raise ValueError(f"clip_text: skip is {skip}, wants 0 to {config.layers - 1}")
    embeddings = "text_model.embeddings"
    x = ops.embedding(
        token_ids, weights[f"{embeddings}.token_embedding.weight"], weights[f"{embeddings}.position_embedding.weight"]
    )
    hidden = x
    for index in range(config.layers):
        x = clip_layer(ops, weights, config, _layer(index), x, causal=True)
        if index == config.layers - 1 - skip:
            hidden = x
    normed = layers.layer_norm(ops, weights, "text_model.final_layer_norm", x, config.eps)
    if final_norm:
        hidden = layers.layer_norm(ops, weights, "text_model.final_layer_norm", hidden, config.eps) if skip else normed
    return TextOutput(hidden, _pooled(ops, weights, config, normed, token_ids))


def _layer(index: int) -> str:
    return f"text_model.encoder.layers.{index}"


def _pooled(ops: Ops, weights: Weights, config: TextConfig, normed: Tensor, token_ids: Tensor) -> Tensor:
    legacy = config.eos_token_id == 2
    end = ops.end_token(normed, token_ids, None if legacy else config.eos_token_id)
    return layers.linear(ops, weights, "text_projection", end) if config.projection_dim is not None else end
