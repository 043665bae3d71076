"""The definition in plain PyTorch."""

import math

import torch
from torch import Tensor

LONGEST_PERIOD = 10000.0


def frequencies(dim: int, freq_shift: int, device: torch.device | None = None) -> Tensor:
    """[dim // 2] float32: 10000^(-i / (dim//2 - freq_shift)), in the order of operations of published models."""
    half = dim // 2
    exponents = -math.log(LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=device)
    return torch.exp(exponents / (half - freq_shift))


def time_embedding(t: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: int, dtype: torch.dtype) -> Tensor:
    """[sin | cos] of t * 10000^(-i / (dim//2 - freq_shift)), or [cos | sin] if flipped: [S, dim] of `dtype`.

    t: [S], or [S, n], whose n embeddings are concatenated to [S, n*dim]. An odd dim ends with a zero. The angles are
    computed in float32 in the order of operations that published models were trained with: t reaches 1000, where one
    ulp of a frequency moves the result by 1e-5. Source: Vaswani et al., 2017, section 3.5.
    """
    angles = t.float()[..., None] * frequencies(dim, freq_shift, t.device)
    halves = (torch.cos(angles), torch.sin(angles)) if flip_sin_to_cos else (torch.sin(angles), torch.cos(angles))
    padding = (angles.new_zeros((*angles.shape[:-1], 1)),) if dim % 2 else ()
    return torch.cat(halves + padding, -1).flatten(1).to(dtype)
