"""The definitions in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding(token_ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    """tokens[token_ids] + positions[:N]: [R, N, C]. token_ids: [R, N] int64. tokens: [V, C]. positions: [at least N, C].

    Raises ValueError for a sequence longer than `positions`.
    """
    length = token_ids.shape[1]
    if length > positions.shape[0]:
        raise ValueError(f"embedding: token_ids has {length} tokens, wants at most {positions.shape[0]}")
    return F.embedding(token_ids, tokens) + positions[:length]


def end_token(x: Tensor, token_ids: Tensor, eos_token_id: int | None) -> Tensor:
    """x [R, N, C] at one position per row: [R, C].

    The position is that of the first `eos_token_id` in token_ids [R, N] (0 where there is none), or of the largest id
    where it is None.
    """
    scores = token_ids if eos_token_id is None else (token_ids == eos_token_id).int()
    return x[torch.arange(x.shape[0], device=x.device), scores.argmax(-1)]
