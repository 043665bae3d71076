"""Head dimensions above those of the fused kernel: product, softmax, product, for some queries at a time."""

import torch
from torch import Tensor

MAP_ELEMENTS = 2**26
"""Elements of a slice of the map."""


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """softmax(scale * Q K^T) V: [R, N, H*d] of q [R, N, H, d] and k, v [R or 1, L, H, d]. The softmax is float32."""
    rows, queries, heads, _ = q.shape
    keys, values = (t.expand(rows, -1, -1, -1).transpose(1, 2) for t in (k, v))
    count = max(1, MAP_ELEMENTS // (rows * heads * k.shape[1]))
    parts = []
    for start in range(0, queries, count):
        scores = (q[:, start : start + count].transpose(1, 2) * scale) @ keys.transpose(2, 3)
        if causal:
            line = torch.arange(start, start + scores.shape[2], device=q.device)[:, None]
            scores = scores.masked_fill(torch.arange(k.shape[1], device=q.device) > line, -torch.inf)
        parts.append((scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ values).transpose(1, 2))
    return torch.cat(parts, 1).flatten(2)
