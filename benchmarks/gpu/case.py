"""What part "rates" times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the report is written even where PyTorch is missing
    from torch import Tensor

OWN, FLASH = "attention kernel", "sdpa"
"""Beginnings of names: our kernel, and PyTorch's on the same operands."""


@dataclass(frozen=True)
class Case:
    """A kernel at one size. bytes: the fewest that it must move. flops: multiplications and additions."""

    name: str
    run: Callable[[], Tensor]
    bytes: int
    flops: int
