"""The CLIP image encoders (arXiv 2103.00020): ViT-L/14 and OpenCLIP's ViT-H/14 and ViT-bigG/14."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bridle.networks import layers, shapes
from bridle.networks.clip_layer import clip_layer, clip_layer_shapes
from bridle.networks.configs import VisionConfig
from bridle_kernels.ops import Ops

Weights = Mapping[str, Tensor]

_EMBEDDINGS = "vision_model.embeddings"
# The misspelling is that of the published files.
_FIRST_NORM, _LAST_NORM = "vision_model.pre_layrnorm", "vision_model.post_layernorm"


def tensor_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network under its published transformers name (with `vision_model.`)."""
    width, patch = config.width, config.patch_size
    expected: shapes.Shapes = {
        f"{_EMBEDDINGS}.class_embedding": (width,),
        f"{_EMBEDDINGS}.patch_embedding.weight": (width, 3, patch, patch),
        f"{_EMBEDDINGS}.position_embedding.weight": (config.tokens, width),
    }
    expected |= shapes.norm(_FIRST_NORM, width)
    for index in range(config.layers):
        expected |= clip_layer_shapes(config, _layer(index))
    return expected | shapes.norm(_LAST_NORM, width) | {"visual_projection.weight": (config.projection_dim, width)}


def image_embeds(ops: Ops, weights: Weights, config: VisionConfig, pixels: Tensor) -> Tensor:
    """The image embedding as one token [R, 1, projection_dim]: the class token, normalised and projected.

    pixels: [R, 3, S, S], S = image_size, as `clip_images.clip_pixels` makes them. Raises ValueError for another size.
    """
    x = hidden_states(ops, weights, config, pixels)
    normed = layers.layer_norm(ops, weights, _LAST_NORM, ops.columns(x, 0, 1), config.eps)
    return layers.linear(ops, weights, "visual_projection", normed)


def hidden_states(ops: Ops, weights: Weights, config: VisionConfig, pixels: Tensor, skip: int = 0) -> Tensor:
    """Token features [R, tokens, width] without the last normalisation; the class token is the first.

    pixels: as for `image_embeds`. skip: layers left out at the end (1 is the penultimate layer, which IP-Adapter's
    "plus" and "full" read). Raises ValueError for pixels of another size and for a bad skip.
    """
    side = config.image_size
    if tuple(pixels.shape[1:]) != (3, side, side):
        raise ValueError(f"clip_vision: pixels are {tuple(pixels.shape)}, wants [rows, 3, {side}, {side}]")
    if not 0 <= skip <= config.layers:
        raise ValueError(f"clip_vision: skip is {skip}, wants 0 to {config.layers}")
    x = layers.layer_norm(ops, weights, _FIRST_NORM, _embed(ops, weights, config, pixels), config.eps)
    for index in range(config.layers - skip):
        x = clip_layer(ops, weights, config, _layer(index), x, causal=False)
    return x


def _layer(index: int) -> str:
    return f"vision_model.encoder.layers.{index}"


def _embed(ops: Ops, weights: Weights, config: VisionConfig, pixels: Tensor) -> Tensor:
    """The class token and one token per patch, each with its position added."""
    positions = weights[f"{_EMBEDDINGS}.position_embedding.weight"]
    grid = positions[1:].T.reshape(1, config.width, config.grid, config.grid)
    patch = weights[f"{_EMBEDDINGS}.patch_embedding.weight"]
    patches = ops.conv2d(pixels, patch, stride=config.patch_size, padding=0, residual=grid)
    # The class token is a vocabulary of one.
    first = weights[f"{_EMBEDDINGS}.class_embedding"]
    ids = ops.rows(torch.zeros((1, 1), dtype=torch.int64, device=first.device), (0,) * pixels.shape[0])
    return ops.concat([ops.embedding(ids, first.reshape(1, config.width), positions), ops.tokens(patches)])
