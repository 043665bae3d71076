"""The definition in plain PyTorch."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class ResidualTerm(Protocol):
    """One residual. values: [r or 1, C, h or 1, w or 1]. scale: [r or 1]. rows: r row indices, or None for all rows.

    mask: [r or 1, 1, h, w], or None.
    """

    @property
    def values(self) -> Tensor: ...

    @property
    def scale(self) -> Tensor: ...

    @property
    def rows(self) -> tuple[int, ...] | None: ...

    @property
    def mask(self) -> Tensor | None: ...


def residual_add(x: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor:
    """x, with scale * mask * values added to the rows that each residual names; rows that none names keep their bits.

    x: [R, C, h, w]. Raises ValueError for a row outside the batch or a residual of another size.
    """
    out = x
    for residual in residuals:
        factor = _factor(x, residual)
        if residual.rows is None:
            out = torch.addcmul(out, residual.values.to(x.dtype), factor)
        else:
            rows = torch.tensor(residual.rows, dtype=torch.int64, device=x.device)
            term = (residual.values.to(x.dtype) * factor).expand(len(rows), *x.shape[1:])
            out = out.index_add(0, rows, term)
    return out


def _factor(x: Tensor, residual: ResidualTerm) -> Tensor:
    check_term(x.shape, residual)
    scale = residual.scale.to(device=x.device)[:, None, None, None]
    factor = scale if residual.mask is None else scale * residual.mask
    return factor.to(x.dtype)


def check_term(shape: Sequence[int], residual: ResidualTerm) -> None:
    """Raises ValueError for a residual that does not fit an image of `shape`, [R, C, h, w]."""
    rows = shape[0] if residual.rows is None else len(residual.rows)
    if residual.rows is not None and not all(0 <= row < shape[0] for row in residual.rows):
        raise ValueError(f"residual_add: rows is {residual.rows}, wants rows of a batch of {shape[0]}")
    wanted = (rows, *shape[1:])
    fits = residual.values.ndim == 4 and all(
        got in (1, want) for got, want in zip(residual.values.shape, wanted, strict=True)
    )
    if not fits or residual.values.shape[1] != shape[1]:
        raise ValueError(f"residual_add: values is {tuple(residual.values.shape)}, wants {wanted}")
