"""The definition in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels.activation.reference import Activation, activate_in_place


def conv2d(
    x: Tensor | tuple[Tensor, Tensor],
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
    """activation(conv(x, weight) + bias + shift + residual): [R, Cout, h', w'].

    x: [R, Cin, h, w], or a pair whose channels add up to Cin. weight: [Cout, Cin, kh, kw]. padding: zeros on every side,
    or (left, right, top, bottom). upsample: (height, width) to which x is enlarged first, by nearest neighbour. shift:
    [R, Cout], added to every position. residual: broadcasts to the result.
    """
    image = torch.cat(x, 1) if isinstance(x, tuple) else x
    if upsample is not None:
        image = F.interpolate(image, upsample, mode="nearest")
    if isinstance(padding, tuple):
        image, padding = F.pad(image, padding), 0
    return finished(F.conv2d(image, weight, bias, stride, padding), shift, residual, activation)


def finished(out: Tensor, shift: Tensor | None, residual: Tensor | None, activation: Activation | None) -> Tensor:
    """activation(out + shift + residual), in place."""
    if shift is not None:
        out += shift[:, :, None, None]
    if residual is not None:
        out += residual
    return activate_in_place(out, activation)
