"""Configurations of IP-Adapter's three image projections. They have no `config.json`: the weights tell them.

Common fields: image_dim is the width of the image encoder's features, context_dim that of the U-Net's context.
"""

from dataclasses import dataclass

RESAMPLER_HEAD_DIM = 64
"""Width of an attention head in every published resampler; the weights do not tell it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProjectionConfig:
    """Of "base" adapters (diffusers `ImageProjection`). tokens: how many one image embedding becomes."""

    image_dim: int
    context_dim: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResamplerConfig:
    """Of "plus" and "plus-face" adapters (diffusers `IPAdapterPlusImageProjection`).

    tokens: number of learned queries. width: of the queries. heads: of `RESAMPLER_HEAD_DIM` each. depth: layers.
    """

    image_dim: int
    context_dim: int
    tokens: int
    width: int
    mlp_width: int
    heads: int
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpProjectionConfig:
    """Of "full" ("full-face") adapters (diffusers `IPAdapterFullImageProjection`): every token of the encoder is kept."""

    image_dim: int
    context_dim: int


ImageProjectionConfig = LinearProjectionConfig | ResamplerConfig | MlpProjectionConfig
