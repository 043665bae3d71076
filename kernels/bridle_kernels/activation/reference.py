"""The definition in plain PyTorch."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["silu", "relu", "gelu", "quick_gelu", "tanh"]


def activation(x: Tensor, kind: Activation) -> Tensor:
    """The activation of every element; x is left as it is. "gelu" is the exact form, "quick_gelu" x * sigmoid(1.702 x)."""
    match kind:
        case "silu":
            return F.silu(x)
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x)
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "tanh":
            return torch.tanh(x)
    raise ValueError(f"activation: kind is {kind!r}, wants silu, relu, gelu, quick_gelu or tanh")


def activate_in_place(x: Tensor, kind: Activation | None) -> Tensor:
    """The same for a fresh tensor that nobody else reads: overwritten where PyTorch can. None is the identity."""
    match kind:
        case None:
            return x
        case "silu":
            return F.silu(x, inplace=True)
        case "relu":
            return F.relu(x, inplace=True)
        case _:
            return activation(x, kind)


def scale_shift(x: Tensor, scale: float, shift: float) -> Tensor:
    """scale * x + shift."""
    return torch.add(shift, x, alpha=scale) if shift else x * scale
