"""attention: what does not fit together is refused by name, before any buffer is touched."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from attention_cases import D, H, L, N, R, heads, index, lse, mean, piece, rand, shift

from bridle_kernels.attention import Capture, Piece, Segment, attention


def base() -> Segment:
    return Segment((piece(1),))


def capture(columns: torch.Tensor | None = None, **fields: object) -> Segment:
    return replace(base(), capture=Capture(columns, **{"out": mean(R, L), **fields}))  # type: ignore[arg-type]


BAD: dict[str, Callable[[], Segment]] = {
    "k is": lambda: Segment((Piece(rand(1, R, 0, H, D), rand(1, R, 0, H, D)),)),
    "length is": lambda: Segment((piece(2, length=[1, 2]),)),
    "length has values 1..8, wants 0..7": lambda: Segment((piece(2, length=[1, 2, 3, 8]),)),
    "length has values -1..3, wants 0..7": lambda: Segment((piece(2, length=[1, 2, 3, -1]),)),
    "k_rows has values -2..1": lambda: replace(base(), k_rows=index(0, 0, 1, -2)),
    "v_rows has values 0..4, wants -1..3": lambda: replace(base(), v_rows=index(0, 0, 1, 4)),
    "q_rows has values -1..1, wants 0..3": lambda: replace(base(), q_rows=index(0, 0, 1, -1)),
    "k_rows is torch.float32, wants integers": lambda: replace(base(), k_rows=torch.zeros(R)),
    r"weight is \[4, 3\], wants \[4, 11\]": lambda: replace(base(), weight=torch.ones(R, 3)),
    r"bias is \[4, 3, 11, 1\], wants \[4 or 1, 3 or 1, 11 or 1, 7\]": lambda: replace(base(), bias=rand(3, R, H, N, 1)),
    r"v_mix is \[1, 7, 6\], wants \[4 or 1, 7, 7\]": lambda: replace(base(), v_mix=rand(4, 1, L, 6)),
    r"lse is \[4, 11, 3\]": lambda: replace(base(), lse=torch.zeros(R, N, H)),
    r"mass.columns is \[3\]": lambda: replace(base(), mass=replace(shift(), columns=torch.arange(3))),
    "mass.columns has values 0..7, wants -1..6": lambda: replace(
        base(), mass=replace(shift(), columns=torch.tensor([[0, 7, 1]]))
    ),
    "mass.share is": lambda: replace(base(), mass=replace(shift(), share=torch.ones(3))),
    r"mass.window is \[4, 2, 11\], wants \[4 or 1, 3 or 1, 11\]": lambda: replace(
        base(), mass=replace(shift(), window=torch.ones(R, 2, N))
    ),
    "mass.out is": lambda: replace(base(), mass=replace(shift(), out=torch.ones(R, 3))),
    r"capture.out is \[4, 11, 6\], wants \[4, 11, 7\]": lambda: capture(out=mean(R, 6)),
    r"capture.out is \[4, 3, 11, 7\], wants \[2, 3, 11, 7\]": lambda: capture(out=heads(R, L), rows=index(0, 1)),
    "capture.out is torch.float16": lambda: capture(out=mean(R, L).half()),
    "capture.columns is": lambda: capture(torch.zeros(2, 7).long()),
    "capture.columns has values 0..7, wants -1..6": lambda: capture(torch.tensor([[0, 1, 2, 3, 4, 5, 7]])),
    "capture.rows has values 0..4, wants 0..3": lambda: capture(rows=index(0, 1, 2, 4)),
    r"capture.scale is \[1\], wants \[4\]": lambda: capture(scale=torch.ones(1)),
}


@pytest.mark.parametrize("problem", BAD)
def test_refused_by_name(problem: str) -> None:
    reported, out = lse(), torch.zeros(R, N, H * D, dtype=torch.float64)
    first = replace(base(), lse=reported)
    with pytest.raises(ValueError, match=f"attention: .*{problem}"):
        attention(rand(0, R, N, H, D), [first, BAD[problem]()], out=out)
    assert reported.isnan().all() and not out.any(), "a refused call did work"
    attention(rand(0, R, N, H, D), [first], out=out)
    assert reported.isfinite().all() and out.any(), "the control: a call that is served does"


def test_arguments_of_the_call() -> None:
    q = rand(0, R, N, H, D)
    with pytest.raises(ValueError, match=r"q is \[4, 11, 24\], wants \[R, N, H, d\]"):
        attention(q.flatten(2), [base()])
    with pytest.raises(ValueError, match=r"gate is \[2\], wants \[4\]"):
        attention(q, [base()], gate=torch.ones(2))
    with pytest.raises(ValueError, match=r"out is \[4, 11, 23\], wants \[4, 11, 24\]"):
        attention(q, [base()], out=torch.zeros(R, N, H * D - 1))
    for field in (
        replace(base(), lse=lse()),
        replace(base(), mass=shift()),
        replace(base(), v_mix=rand(1, 1, L, L)),
        capture(),
    ):
        with pytest.raises(ValueError, match="causal"):
            attention(q, [field], causal=True)
