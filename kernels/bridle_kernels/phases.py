"""The weights of a 3x3 convolution whose input is enlarged by exactly two first (nearest neighbour), as four 2x2
convolutions of the small input, one for each parity of an output's line and column. See `upsampled_conv2d.h`."""

import math
import mmap
from dataclasses import dataclass
from itertools import starmap

import torch
from torch import Tensor

BLOCK = 32
"""Outputs that are summed at a time."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Outputs whose line and column are of one parity, 0 or 1 each."""

    line: int
    column: int

    def weights(self, weight: Tensor) -> Tensor:
        """[N, C, 2, 2] of weight [N, C, 3, 3]: the sums of taps that read the same pixel, in float32."""
        out = _given_back(weight.shape[0], weight.shape[1], 2, 2)
        for start in range(0, weight.shape[0], BLOCK):
            part = weight[start : start + BLOCK].float()
            out[start : start + BLOCK] = _summed(_summed(part, 2, self.line), 3, self.column)
        return out


PHASES = tuple(starmap(Phase, ((0, 0), (0, 1), (1, 0), (1, 1))))
"""In the core's order."""


def _given_back(*shape: int) -> Tensor:
    """Float32 in memory that goes back to the system with the tensor: the allocator would keep it for a process's life."""
    return torch.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), dtype=torch.float32).view(shape)


def _summed(weight: Tensor, side: int, parity: int) -> Tensor:
    """An even place reads the pixel before its own and twice its own, an odd one twice its own and the one behind."""
    before, own, behind = weight.unbind(side)
    return torch.stack((before, own + behind) if parity == 0 else (before + own, behind), side)
