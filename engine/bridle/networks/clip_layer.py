"""The transformer layer that CLIP's text and image encoders share."""

from collections.abc import Mapping

from torch import Tensor

from bridle.networks import layers, shapes
from bridle.networks.configs import ClipConfig
from bridle_kernels.activation import Activation
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.ops import Ops


def clip_layer_shapes(config: ClipConfig, name: str) -> shapes.Shapes:
    """The tensors of one layer under their published transformers names."""
    width = config.width
    expected = shapes.norm(f"{name}.layer_norm1", width) | shapes.norm(f"{name}.layer_norm2", width)
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        expected |= shapes.linear(f"{name}.self_attn.{projection}", width, width)
    expected |= shapes.linear(f"{name}.mlp.fc1", width, config.mlp_width)
    return expected | shapes.linear(f"{name}.mlp.fc2", config.mlp_width, width)


def clip_layer(
    ops: Ops, weights: Mapping[str, Tensor], config: ClipConfig, name: str, x: Tensor, *, causal: bool
) -> Tensor:
    """x + MLP(LN(x)) after x + Attn(LN(x)), for tokens x [R, N, width]. causal: token n sees tokens 0 to n only."""
    normed = layers.layer_norm(ops, weights, f"{name}.layer_norm1", x, config.eps)
    parts = [f"{name}.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj")]
    biases = [weights[f"{part}.bias"] for part in parts]
    q, k, v = ops.project_heads(normed, [weights[f"{part}.weight"] for part in parts], config.heads, biases)
    out = ops.attention(q, (Segment((Piece(k, v),)),), causal=causal)
    x = layers.linear(ops, weights, f"{name}.self_attn.out_proj", out, residual=x)
    normed = layers.layer_norm(ops, weights, f"{name}.layer_norm2", x, config.eps)
    activation: Activation = "quick_gelu" if config.activation == "quick_gelu" else "gelu"
    hidden = layers.linear(ops, weights, f"{name}.mlp.fc1", normed, activation=activation)
    return layers.linear(ops, weights, f"{name}.mlp.fc2", hidden, residual=x)
