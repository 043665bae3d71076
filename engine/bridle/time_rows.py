"""The rows of time tables that a batch reads step by step."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bridle.uploads import upload


class TimeRows:
    """tables: of each row, [S, sumC]. All of them lie in one table on their device; a step is a choice of its rows."""

    def __init__(self, tables: Sequence[Tensor]) -> None:
        unique = {id(table): table for table in tables}
        starts = dict(zip(unique, np.cumsum([0, *(len(table) for table in unique.values())]), strict=False))
        self._starts = [int(starts[id(table)]) for table in tables]
        self._table = next(iter(unique.values())) if len(unique) == 1 else torch.cat(list(unique.values()))

    def at(self, steps: Sequence[int]) -> Tensor:
        """[R, sumC]: of every row its own step."""
        places = [start + step for start, step in zip(self._starts, steps, strict=True)]
        return self._table.index_select(0, upload(places, self._table.device))
