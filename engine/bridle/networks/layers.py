"""Layers by name: an op with the weights that a checkpoint keeps under one module path."""

from collections.abc import Mapping

from torch import Tensor

from bridle_kernels.activation import Activation
from bridle_kernels.ops import Ops

Weights = Mapping[str, Tensor]
Pair = tuple[Tensor, Tensor]


def conv(
    ops: Ops,
    weights: Weights,
    name: str,
    x: Tensor | Pair,
    *,
    stride: int = 1,
    padding: int | tuple[int, int, int, int] = 1,
    upsample: tuple[int, int] | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """`ops.conv2d` with the weights of `name`; a missing bias is none."""
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    return ops.conv2d(
        x,
        weight,
        bias,
        stride=stride,
        padding=padding,
        upsample=upsample,
        shift=shift,
        residual=residual,
        activation=activation,
    )


def linear(
    ops: Ops,
    weights: Weights,
    name: str,
    x: Tensor,
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """`ops.linear` with the weights of `name`; a missing bias is none."""
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    return ops.linear(x, weight, bias, residual=residual, activation=activation)


def mlp(ops: Ops, weights: Weights, name: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Two linear layers with SiLU between them, plus `residual`: the embedding networks."""
    hidden = linear(ops, weights, f"{name}.linear_1", x, activation="silu")
    return linear(ops, weights, f"{name}.linear_2", hidden, residual=residual)


def group_norm(
    ops: Ops,
    weights: Weights,
    name: str,
    x: Tensor | Pair,
    groups: int,
    eps: float,
    *,
    activation: Activation | None = None,
) -> Tensor:
    """`ops.group_norm` with the weights of `name`."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return ops.group_norm(x, weight, bias, groups, eps, activation=activation)


def layer_norm(ops: Ops, weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """`ops.layer_norm` with the weights of `name`."""
    return ops.layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)
