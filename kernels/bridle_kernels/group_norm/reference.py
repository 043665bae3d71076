"""The definition in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels.activation.reference import Activation, activate_in_place


def group_norm(
    x: Tensor | tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    activation: Activation | None = None,
    affine: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor:
    """activation(GN(x) * (1 + scale) + shift): [R, C, h, w].

    x: [R, C, h, w], or a pair whose channels add up to C. weight, bias: [C]. affine: (scale, shift or None), [R, C] each.
    """
    image = torch.cat(x, 1) if isinstance(x, tuple) else x
    out = F.group_norm(image, groups, weight, bias, eps)
    if affine is not None:
        scale, shift = affine
        out = out * (1 + scale[:, :, None, None])
        out = out if shift is None else out + shift[:, :, None, None]
    return activate_in_place(out, activation)
