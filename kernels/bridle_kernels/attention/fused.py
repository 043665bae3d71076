"""Plain attention by PyTorch's fused kernels, which are faster than ours where a segment asks for nothing else.

H200, float16, microseconds beside our kernel's best tiles, with other work on the GPU (331cabf): 4096 positions of 8 heads of
40 154 and 243, of 10 heads of 64 189 and 351, 1024 positions of 8 heads of 80 22 and 35, 256 of 160 16 and 21.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)
"""In others there is no fused kernel."""


def serves(q: Tensor) -> bool:
    """Whether PyTorch has a fused kernel for q [R, N, H, d]: on a GPU, of head dimensions that are multiples of 8."""
    return q.is_cuda and q.dtype in DTYPES and q.shape[3] % 8 == 0 and q.shape[3] <= 256


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """softmax(scale * Q K^T) V: [R, N, H*d] of q [R, N, H, d] and k, v [R or 1, L, H, d]."""
    queries, keys, values = (t.expand(q.shape[0], -1, -1, -1).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal, scale=scale)
    return out.transpose(1, 2).flatten(2)
