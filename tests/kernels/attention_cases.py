"""Segments for the tests of attention: every term of the algebra, alone and together, in float64."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bridle_kernels.attention import Capture, MassShift, Piece, Segment
from numerics import poisoned

R, N, H, D, L = 4, 11, 3, 8, 7
"""Odd but for D: MKL rounds by alignment, and some tests compare bits."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def index(*rows: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def piece(seed: int, rows: int = R, tokens: int = L, length: Sequence[int] | None = None) -> Piece:
    k, v = rand(seed, rows, tokens, H, D), rand(seed + 1000, rows, tokens, H, D)
    return Piece(k, v, None if length is None else index(*length))


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape and wanted.abs().max() > 0
    return float((got.double() - wanted.double()).abs().max() / wanted.abs().max())


def window(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64).softmax(-1)


def shift(rows: int = R, per_column: bool = True) -> MassShift:
    columns = torch.tensor([[0, 3, -1], [2, 6, 2], [1, -1, -1], [5, 0, 4]])[:rows]
    share = torch.rand(rows, 3, generator=generator(3), dtype=torch.float64)
    return MassShift(columns, share, window(4, rows, 3 if per_column else 1, N), poisoned((R, H, 3)).double())


def heads(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows, H, N, columns, dtype=torch.float64)


def mean(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows, N, columns, dtype=torch.float64)


def lse() -> Tensor:
    return poisoned((R, H, N)).double()


def hiding_bias() -> Tensor:
    bias = rand(40, R, 1, N, L)
    bias[1, :, 3] = -torch.inf
    bias[2, :, :, 2:5] = -torch.inf
    return bias


def cases() -> dict[str, list[Segment]]:
    """Fresh segments, with fresh buffers."""
    some = index(2, 0, 2)
    columns = torch.tensor([[0, 3, -1], [6, 6, 2], [1, -1, 5]])
    base = Segment((piece(1),))
    short = Segment((piece(2, length=[7, 0, 1, 4]), piece(3, tokens=3, length=[3, 2, 0, 1])))
    moved = replace(base, k_rows=index(2, -1, 0, 1), v_rows=index(2, 0, 0, -1), q_rows=index(3, 3, 0, 1))
    return {
        "mix": [replace(base, v_mix=rand(5, R, L, L))],
        "mix shared by rows": [replace(base, v_mix=rand(6, 1, L, L))],
        "mix of other values": [Segment((Piece(rand(7, R, L, H, D), rand(8, R, 4, H, D)),), v_mix=rand(9, R, L, 4))],
        "mix and lengths": [replace(short, v_mix=rand(10, R, L + 3, L + 3))],
        "mass": [replace(base, mass=shift())],
        "mass, one window": [replace(base, mass=shift(per_column=False))],
        "mass, shared": [replace(base, mass=shift(1, per_column=False))],
        "mass, number": [replace(base, mass=replace(shift(), share=0.8, out=None))],
        "mass and lengths": [replace(short, mass=shift())],
        "mass and bias": [replace(base, mass=shift(), bias=hiding_bias())],
        "capture all": [replace(base, capture=Capture(None, heads(R, L)))],
        "capture all, mean": [replace(base, capture=Capture(None, mean(R, L)))],
        "capture columns": [replace(base, capture=Capture(columns, mean(3, 3), some, 0.25))],
        "capture columns per head": [replace(base, capture=Capture(columns, heads(3, 3), some, rand(11, 3)))],
        "capture shared columns": [replace(base, capture=Capture(columns[:1], heads(R, 3)))],
        "capture and lengths": [replace(short, capture=Capture(columns + 2, mean(3, 3), some))],
        "capture twice": [
            replace(base, capture=(Capture(columns, mean(3, 3), some), Capture(columns[2:], heads(1, 3), index(3))))
        ],
        "capture and absent rows": [replace(moved, capture=Capture(None, mean(R, L)))],
        "lse": [replace(base, lse=lse())],
        "lse, bias, absent rows": [replace(moved, bias=hiding_bias(), lse=lse())],
        "everything": [
            replace(short, weight=rand(12, R, N), lse=lse(), v_mix=rand(13, 1, L + 3, L + 3), mass=shift(),
                    bias=rand(14, 1, H, 1, L + 3), capture=(Capture(columns, mean(3, 3), some, 2.0),)),
            replace(moved, weight=rand(15, R), mass=shift(1), capture=Capture(columns, heads(3, 3), some)),
            replace(base, weight=0.5),
        ],
    }  # fmt: skip


CASES = list(cases())
