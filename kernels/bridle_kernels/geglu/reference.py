"""The definition in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """a * gelu(g) where [a | g] = x @ weight.T + bias: [..., C]. x: [..., Cin]. weight: [2*C, Cin]. gelu is exact."""
    value, gate = F.linear(x, weight, bias).chunk(2, -1)
    return F.gelu(gate).mul_(value)
