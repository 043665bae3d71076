"""What products read of a width: bfloat16 comes in pairs, so a zero follows an odd number of elements."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def span(dtype: torch.dtype, width: int) -> int:
    """How many elements are read of `width`."""
    return width + width % 2 if dtype == torch.bfloat16 else width


def spanned(matrix: Tensor, widths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """matrix [..., sum of widths] with the columns of zeros that make every width a span of `dtype`."""
    missing = [span(dtype, width) - width for width in widths]
    if not any(missing):
        return matrix
    parts = torch.split(matrix, list(widths), -1)
    return torch.cat([pad(part, (0, count)) for part, count in zip(parts, missing, strict=True)], -1)
