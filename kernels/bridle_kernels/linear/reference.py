"""The definition in plain PyTorch."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from bridle_kernels.activation.reference import Activation, activate_in_place


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """activation(x @ weight.T + bias + residual): [..., Cout].

    x: [..., Cin]. weight: [Cout, Cin], or [Cout, Cin, 1, 1] as 1x1 convolutions keep it. residual: broadcasts.
    """
    out = F.linear(x, weight.flatten(1), bias)
    if residual is not None:
        out += residual
    return activate_in_place(out, activation)


def project_heads(
    x: Tensor, weights: Sequence[Tensor], heads: int, biases: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """x @ weight.T + bias for each weight [heads*d, C], split into heads: [R, N, heads, d] each. x: [R, N, C]."""
    offsets = biases if biases is not None else [None] * len(weights)
    return tuple(
        F.linear(x, weight, bias).reshape(*x.shape[:-1], heads, -1)
        for weight, bias in zip(weights, offsets, strict=True)
    )
