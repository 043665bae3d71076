"""IP-Adapter's image projections (arXiv 2308.06721): features of the CLIP image encoder -> tokens for cross-attention.

"base" is a linear layer on the image embedding, "plus" a perceiver resampler on the penultimate hidden states, "full" an
MLP on each of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bridle.networks import layers, shapes
from bridle.networks.configs import (
    ImageProjectionConfig,
    LinearProjectionConfig,
    MlpProjectionConfig,
    ResamplerConfig,
)
from bridle.networks.configs.image_projection import RESAMPLER_HEAD_DIM
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.ops import Ops

Weights = Mapping[str, Tensor]
EPS = 1e-5


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Tokens of B image prompts, [B, T, D] each: for conditional rows, and for unconditional rows (no image)."""

    conditional: Tensor
    unconditional: Tensor


def tensor_shapes(config: ImageProjectionConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the projection under its diffusers name."""
    match config:
        case LinearProjectionConfig():
            expected = shapes.linear("image_embeds", config.image_dim, config.tokens * config.context_dim)
            return expected | shapes.norm("norm", config.context_dim)
        case ResamplerConfig():
            return _resampler_shapes(config)
        case MlpProjectionConfig():
            expected = shapes.linear("ff.net.0.proj", config.image_dim, config.image_dim)
            expected |= shapes.linear("ff.net.2", config.image_dim, config.context_dim)
            return expected | shapes.norm("norm", config.context_dim)


def project_image(ops: Ops, weights: Weights, config: ImageProjectionConfig, features: Tensor) -> Tensor:
    """Image tokens [R, T, context_dim].

    features: [R, 1, image_dim] image embeddings for a linear projection, else [R, N, image_dim] hidden states. T is
    `config.tokens`; an MLP keeps T = N.
    """
    match config:
        case LinearProjectionConfig():
            return _linear_projection(ops, weights, config, features)
        case ResamplerConfig():
            return _resample(ops, weights, config, features)
        case MlpProjectionConfig():
            hidden = layers.linear(ops, weights, "ff.net.0.proj", features, activation="gelu")
            return layers.layer_norm(ops, weights, "norm", layers.linear(ops, weights, "ff.net.2", hidden), EPS)


def _linear_projection(ops: Ops, weights: Weights, config: LinearProjectionConfig, features: Tensor) -> Tensor:
    weight, bias = weights["image_embeds.weight"], weights["image_embeds.bias"]
    (tokens,) = ops.project_heads(features, [weight], config.tokens, [bias])
    return layers.layer_norm(ops, weights, "norm", tokens.flatten(1, 2), EPS)


def _resample(ops: Ops, weights: Weights, config: ResamplerConfig, features: Tensor) -> Tensor:
    x = layers.linear(ops, weights, "proj_in", features)
    latents = ops.rows(weights["latents"], (0,) * features.shape[0])
    for index in range(config.depth):
        latents = _resampler_layer(ops, weights, config, f"layers.{index}", x, latents)
    return layers.layer_norm(ops, weights, "norm_out", layers.linear(ops, weights, "proj_out", latents), EPS)


def _resampler_layer(
    ops: Ops, weights: Weights, config: ResamplerConfig, name: str, x: Tensor, latents: Tensor
) -> Tensor:
    """Latents attend to the image's tokens x and to themselves in one softmax, then pass an MLP."""
    image = layers.layer_norm(ops, weights, f"{name}.ln0", x, EPS)
    normed = layers.layer_norm(ops, weights, f"{name}.ln1", latents, EPS)
    to_q, to_k, to_v = (weights[f"{name}.attn.{part}.weight"] for part in ("to_q", "to_k", "to_v"))
    q, k, v = ops.project_heads(normed, [to_q, to_k, to_v], config.heads)
    pieces = (Piece(*ops.project_heads(image, [to_k, to_v], config.heads)), Piece(k, v))
    out = ops.attention(q, (Segment(pieces),))
    latents = layers.linear(ops, weights, f"{name}.attn.to_out.0", out, residual=latents)
    normed = layers.layer_norm(ops, weights, f"{name}.ff.0", latents, EPS)
    hidden = layers.linear(ops, weights, f"{name}.ff.1.net.0.proj", normed, activation="gelu")
    return layers.linear(ops, weights, f"{name}.ff.1.net.2", hidden, residual=latents)


def _resampler_shapes(config: ResamplerConfig) -> shapes.Shapes:
    width, inner = config.width, config.heads * RESAMPLER_HEAD_DIM
    expected: shapes.Shapes = {"latents": (1, config.tokens, width)}
    expected |= shapes.linear("proj_in", config.image_dim, width) | shapes.linear("proj_out", width, config.context_dim)
    expected |= shapes.norm("norm_out", config.context_dim)
    for index in range(config.depth):
        name = f"layers.{index}"
        for norm in ("ln0", "ln1", "ff.0"):
            expected |= shapes.norm(f"{name}.{norm}", width)
        expected |= {f"{name}.attn.{part}.weight": (inner, width) for part in ("to_q", "to_k", "to_v")}
        expected[f"{name}.attn.to_out.0.weight"] = (width, inner)
        expected[f"{name}.ff.1.net.0.proj.weight"] = (config.mlp_width, width)
        expected[f"{name}.ff.1.net.2.weight"] = (width, config.mlp_width)
    return expected
