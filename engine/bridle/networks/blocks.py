"""The two blocks that every Stable Diffusion network is built from: residual block and transformer."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from bridle.networks import layers
from bridle.networks.configs import EncoderConfig
from bridle.networks.layout import Transformer
from bridle.networks.shared_start import SharedStart
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.ops import Ops

Weights = Mapping[str, Tensor]

TRANSFORMER_NORM_EPS = 1e-6
LAYER_NORM_EPS = 1e-5


def res_block(
    ops: Ops,
    weights: Weights,
    name: str,
    x: Tensor | tuple[Tensor, Tensor],
    groups: int,
    eps: float,
    shift: Tensor | None = None,
) -> Tensor:
    """conv(SiLU(GN(conv(SiLU(GN(x))) + shift))) + x, where a change of width makes the last x a 1x1 convolution of it.

    x: [R, C, h, w], or a pair that is read as if concatenated. shift: [R, C'] or None.
    """
    h = layers.group_norm(ops, weights, f"{name}.norm1", x, groups, eps, activation="silu")
    h = layers.conv(ops, weights, f"{name}.conv1", h, shift=shift)
    h = layers.group_norm(ops, weights, f"{name}.norm2", h, groups, eps, activation="silu")
    if f"{name}.conv_shortcut.weight" not in weights:
        assert not isinstance(x, tuple)
        return layers.conv(ops, weights, f"{name}.conv2", h, residual=x)
    h = layers.conv(ops, weights, f"{name}.conv2", h)
    return layers.conv(ops, weights, f"{name}.conv_shortcut", x, padding=0, residual=h)


def transformer(
    ops: Ops,
    weights: Weights,
    block: Transformer,
    config: EncoderConfig,
    x: Tensor,
    size: tuple[int, int],
    segments: Sequence[tuple[Segment, ...]],
    self_rows: Tensor | None = None,
    start: SharedStart | None = None,
) -> Tensor:
    """A stack of transformer blocks on image x [R, C, h, w], added to x.

    segments: of each block's cross-attention. self_rows: [R], rows whose self-attention maps are read, or None. start: x
    has one row of each kind, and the result all rows.
    """
    normed = layers.group_norm(ops, weights, f"{block.name}.norm", x, config.groups, TRANSFORMER_NORM_EPS)
    h = layers.linear(ops, weights, f"{block.name}.proj_in", ops.tokens(normed))
    del normed
    for index, context in enumerate(segments):
        name = f"{block.name}.transformer_blocks.{index}"
        h = _self_attention(ops, weights, name, block.heads, config.upcast_attention, h, self_rows)
        if start is not None and index == 0:
            h, x = start.spread(ops, h), start.spread(ops, x)
        h = _cross_attention(ops, weights, name, block.heads, config.upcast_attention, h, context)
        h = _feed_forward(ops, weights, name, h)
    return ops.image(layers.linear(ops, weights, f"{block.name}.proj_out", h, residual=ops.tokens(x)), size)


def _self_attention(
    ops: Ops, weights: Weights, name: str, heads: int, upcast: bool, h: Tensor, map_rows: Tensor | None
) -> Tensor:
    normed = layers.layer_norm(ops, weights, f"{name}.norm1", h, LAYER_NORM_EPS)
    names = [f"{name}.attn1.{part}.weight" for part in ("to_q", "to_k", "to_v")]
    q, k, v = ops.project_heads(normed, [weights[n] for n in names], heads)
    out = ops.attention(q, (Segment((Piece(k, v),), q_rows=map_rows, k_rows=map_rows),), float32_scores=upcast)
    return layers.linear(ops, weights, f"{name}.attn1.to_out.0", out, residual=h)


def _cross_attention(
    ops: Ops, weights: Weights, name: str, heads: int, upcast: bool, h: Tensor, segments: tuple[Segment, ...]
) -> Tensor:
    normed = layers.layer_norm(ops, weights, f"{name}.norm2", h, LAYER_NORM_EPS)
    (q,) = ops.project_heads(normed, [weights[f"{name}.attn2.to_q.weight"]], heads)
    out = ops.attention(q, segments, float32_scores=upcast)
    return layers.linear(ops, weights, f"{name}.attn2.to_out.0", out, residual=h)


def _feed_forward(ops: Ops, weights: Weights, name: str, h: Tensor) -> Tensor:
    normed = layers.layer_norm(ops, weights, f"{name}.norm3", h, LAYER_NORM_EPS)
    gate = f"{name}.ff.net.0.proj"
    hidden = ops.geglu(normed, weights[f"{gate}.weight"], weights[f"{gate}.bias"])
    return layers.linear(ops, weights, f"{name}.ff.net.2", hidden, residual=h)
