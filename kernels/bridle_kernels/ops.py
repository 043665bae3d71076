"""The vocabulary that networks are written against, and its plain PyTorch implementation.

Networks treat tensors as opaque: every computation on an activation is a method below, so that other implementations can
record a program, fuse, or trace. Images are [R, C, h, w], tokens [R, N, C], attention heads [R, N, H, d].
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from bridle_kernels import activation as _activation
from bridle_kernels import attention as _attention
from bridle_kernels import conv2d as _conv2d
from bridle_kernels import embedding as _embedding
from bridle_kernels import geglu as _geglu
from bridle_kernels import group_norm as _group_norm
from bridle_kernels import layer_norm as _layer_norm
from bridle_kernels import linear as _linear
from bridle_kernels import pixel_unshuffle as _pixel_unshuffle
from bridle_kernels import resample as _resample
from bridle_kernels import residual_add as _residual_add
from bridle_kernels import rows as _rows
from bridle_kernels import time_embedding as _time_embedding
from bridle_kernels import tokens as _tokens
from bridle_kernels.activation import Activation
from bridle_kernels.attention import Segment
from bridle_kernels.residual_add import ResidualTerm

Pair = tuple[Tensor, Tensor]
"""Two images that are read as if their channels were concatenated."""


class Ops(Protocol):
    """What a network may do with tensors. Each method can be one fused kernel."""

    def conv2d(
        self,
        x: Tensor | Pair,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int = 1,
        padding: int | tuple[int, int, int, int] = 1,
        upsample: tuple[int, int] | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        activation: Activation | None = None,
    ) -> Tensor:
        """activation(conv(x) + bias + shift + residual).

        padding: or (left, right, top, bottom). upsample: (height, width) to which x is enlarged first, nearest neighbour.
        shift: [R, Cout].
        """
        ...

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        activation: Activation | None = None,
    ) -> Tensor:
        """activation(x @ weight.T + bias + residual). weight: [Cout, Cin], or [Cout, Cin, 1, 1] of a 1x1 convolution."""
        ...

    def project_heads(
        self, x: Tensor, weights: Sequence[Tensor], heads: int, biases: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """Several linear layers of tokens [R, N, C], each split into heads [R, N, heads, d]: Q, K and V in one pass."""
        ...

    def geglu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """a * gelu(g) where [a | g] = x @ weight.T + bias."""
        ...

    def group_norm(
        self,
        x: Tensor | Pair,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        *,
        activation: Activation | None = None,
        affine: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """activation(GN(x) * (1 + scale) + shift). affine: (scale, shift), [R, C] each: a second AdaGN condition."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalisation over the last dimension."""
        ...

    def attention(
        self,
        q: Tensor,
        segments: Sequence[Segment],
        *,
        scale: float | None = None,
        causal: bool = False,
        float32_scores: bool = False,
    ) -> Tensor:
        """Sum over segments of weight * softmax(scale * q.K + bias) @ V: [R, N, H*d]. See `attention.reference`."""
        ...

    def residual_add(self, x: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor:
        """x, plus scale * mask * values on the rows that each residual names. x is given up: it may be written over."""
        ...

    def skip_connection(self, x: Tensor, skip: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor | Pair:
        """What a block of a decoder reads: x, and skip with residuals added (`residual_add`), concatenated or as a pair."""
        ...

    def time_embedding(
        self, t: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: int, dtype: torch.dtype
    ) -> Tensor:
        """Sinusoids of t [S] or [S, n], computed in float32: [S, n*dim] of `dtype`."""
        ...

    def average_pool(self, x: Tensor) -> Tensor:
        """Means of 2x2 blocks; an odd side rounds up, its last block averages what there is."""
        ...

    def spatial_mean(self, x: Tensor) -> Tensor:
        """[R, C, 1, 1]."""
        ...

    def resize_mask(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """A mask [R, 1, h, w] at another size, by area averaging."""
        ...

    def pixel_unshuffle(self, x: Tensor, factor: int) -> Tensor:
        """Blocks of factor x factor pixels become channels: [R, C*factor^2, h/factor, w/factor]."""
        ...

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """An elementwise activation."""
        ...

    def scale_shift(self, x: Tensor, scale: float, shift: float) -> Tensor:
        """scale * x + shift."""
        ...

    def embedding(self, token_ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens[token_ids] + positions: [R, N, C] of ids [R, N]."""
        ...

    def end_token(self, x: Tensor, token_ids: Tensor, eos_token_id: int | None) -> Tensor:
        """[R, C]: x at the first end token of each row, or at the largest id where `eos_token_id` is None."""
        ...

    def tokens(self, x: Tensor) -> Tensor:
        """An image [R, C, h, w] as tokens [R, h*w, C]."""
        ...

    def image(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens [R, h*w, C] as an image [R, C, h, w]."""
        ...

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        """Along the channels (dimension 1)."""
        ...

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Channels (dimension 1) from start to stop."""
        ...

    def rows(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """The named rows of the batch, in that order."""
        ...

    def name_point(self, x: Tensor, name: str) -> Tensor:
        """x itself. Tells the implementation that this value is the U-Net point `name` ("block.3", "mid", ...)."""
        ...


class ReferenceOps:
    """`Ops` in plain PyTorch: any device and dtype, differentiable, the definition that others are tested against."""

    conv2d = staticmethod(_conv2d.conv2d)
    linear = staticmethod(_linear.linear)
    project_heads = staticmethod(_linear.project_heads)
    geglu = staticmethod(_geglu.geglu)
    group_norm = staticmethod(_group_norm.group_norm)
    layer_norm = staticmethod(_layer_norm.layer_norm)
    attention = staticmethod(_attention.attention)
    residual_add = staticmethod(_residual_add.residual_add)
    time_embedding = staticmethod(_time_embedding.time_embedding)
    average_pool = staticmethod(_resample.average_pool)
    spatial_mean = staticmethod(_resample.spatial_mean)
    resize_mask = staticmethod(_resample.resize_mask)
    pixel_unshuffle = staticmethod(_pixel_unshuffle.pixel_unshuffle)
    activation = staticmethod(_activation.activation)
    scale_shift = staticmethod(_activation.scale_shift)
    embedding = staticmethod(_embedding.embedding)
    end_token = staticmethod(_embedding.end_token)
    tokens = staticmethod(_tokens.tokens)
    image = staticmethod(_tokens.image)
    concat = staticmethod(_rows.concat)
    columns = staticmethod(_rows.columns)
    rows = staticmethod(_rows.rows)

    def skip_connection(self, x: Tensor, skip: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor | Pair:
        """A pair."""
        return x, self.residual_add(skip, residuals) if residuals else skip

    def name_point(self, x: Tensor, name: str) -> Tensor:
        """x itself."""
        return x
