"""The definitions in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def concat(parts: Sequence[Tensor]) -> Tensor:
    """Concatenation along dimension 1."""
    return torch.cat(list(parts), 1)


def columns(x: Tensor, start: int, stop: int) -> Tensor:
    """x[:, start:stop], a view; x itself where that is all of it."""
    return x if start == 0 and stop == x.shape[1] else x[:, start:stop]


def rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """The named rows (dimension 0) in that order."""
    return x.index_select(0, torch.tensor(list(rows), dtype=torch.int64, device=x.device))
