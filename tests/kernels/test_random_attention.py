"""Attention of the C++ core on random cases: sides, views, pieces, lengths, rows, every term, ties of huge scores."""

from dataclasses import replace

import torch
from attention_cases import index
from naive_attention import naive_attention
from random_cases import Case, assert_accepted, assert_same, run
from test_attention_acceptance import PROBABILITY_ROUNDING, magnitude
from test_native_attention import each_dtype, each_isa
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.attention import Capture, MassShift, Piece, Segment, native

KINDS = ("normal", "normal", "uniform", "powers", "equal", "one hot", "subnormal")
MOST = 60_000
"""Products of a case."""
HUGE = 100.0
"""Scores of integer cases are its square, or minus that."""


def call(
    q: Tensor, segments: list[Segment], out: Tensor, isa: str, gate: list[float], scale: float, threads: int
) -> Tensor:
    assert native.refusal(q, segments, out) is None
    operands = native.segment_operands(segments, q)
    _core.attention(_core.ThreadPool(threads), q, operands, out, gate=gate, scale=scale, isa=isa)
    return out


def piece_of(case: Case, rows: int, keys: int, heads: int, dim: int, dtype: torch.dtype, tied: int) -> Piece:
    """tied: the keys of integer cases whose scores are HUGE squared. What lies behind a length is NaN."""
    k, v = (case.values(1 if case.chance(0.2) else rows, keys, heads, dim, dtype=dtype) for _ in range(2))
    if case.exact:
        k[..., 0] = -HUGE
        k[:, :tied, :, 0] = HUGE
    lengths = None
    if case.chance(0.4):
        lengths = index(*[case.pick(range(tied if case.exact else 0, keys + 1)) for _ in range(rows)])
        for tensor in (k, v):
            tensor[:, int(lengths.max()) :] = torch.nan
    return Piece(case.given(k, dtype, "rows"), case.given(v, dtype, "rows"), lengths)


def segment_of(case: Case, rows: int, queries: int, keys: int, heads: int, dim: int, dtype: torch.dtype) -> Segment:
    tied = case.pick([n for n in (1, 2, 4, 8, 16) if n <= keys])
    pieces = [piece_of(case, rows, keys, heads, dim, dtype, tied)]
    if case.chance(0.3):
        pieces.append(piece_of(case, rows, tied if case.exact else case.pick((1, 3, 7)), heads, dim, dtype, tied))
    total = sum(piece.k.shape[1] for piece in pieces)
    segment = Segment(tuple(pieces))
    if case.chance(0.3):
        segment = replace(segment, weight=case.given(case.normal(rows, *[queries] * case.pick((0, 1)))))
    if case.chance(0.2):
        rows_of = index(*[case.pick(range(-1, rows)) for _ in range(rows)])
        segment = replace(segment, k_rows=rows_of, v_rows=rows_of, q_rows=rows_of.clamp(min=0))
    if case.exact:
        return segment
    if case.chance(0.4):
        sides = [side if case.chance() else 1 for side in (rows, heads, queries)]
        segment = replace(segment, bias=case.given(case.normal(*sides, total), layout="any"))
    if case.chance(0.2) and all(piece.length is None for piece in pieces):
        mix = torch.eye(total) + 0.3 * case.normal(case.pick((1, rows)), total, total) / total**0.5
        segment = replace(segment, v_mix=case.given(mix, layout="rows"))
    if case.chance(0.2):
        columns = torch.tensor([[case.pick(range(-1, total)) for _ in range(2)]])
        window = case.given(case.normal(1, 2, queries).softmax(-1), layout="any")
        segment = replace(
            segment, mass=MassShift(columns, 0.3, window, case.output(rows, heads, 2, dtype=torch.float32))
        )
    return segment


def reporting(case: Case, segment: Segment, rows: int, queries: int, heads: int) -> Segment:
    """With captures into gapped buffers, and the log-sum-exp."""
    keys = sum(piece.k.shape[1] for piece in segment.pieces)
    side = (rows, heads, queries, keys) if case.chance() else (rows, queries, keys)
    out = case.output(*side, dtype=torch.float32, layout="any")
    out.zero_()
    return replace(segment, capture=Capture(None, out), lse=case.output(rows, heads, queries, dtype=torch.float32))


@each_dtype
@each_isa
def test_attention(isa: str, dtype: torch.dtype) -> None:
    def check(case: Case) -> None:
        while True:
            queries, keys, dim = case.sides(3, MOST)
            rows, heads = case.pick((1, 2, 3)), case.pick((1, 2, 3, 5))
            if rows * heads * queries * keys * dim <= MOST:
                break
        q = case.values(rows, queries, heads, dim, dtype=dtype)
        if case.exact:
            q[...] = 0
            q[..., 0] = HUGE
        q = case.given(q, dtype, "rows")
        segments = [segment_of(case, rows, queries, keys, heads, dim, dtype) for _ in range(case.pick((1, 1, 2)))]
        gate = case.normal(rows).tolist()
        out = case.output(rows, queries, heads * dim, dtype=dtype)
        scale = 1.0 if case.exact else case.pick((dim**-0.5, 0.3))
        call(q, segments, out, isa, gate, scale, threads=2)
        naive = naive_attention(q, segments, scale)
        gates = torch.tensor(gate)[:, None, None]
        sums, rounding = dim + keys + 24, PROBABILITY_ROUNDING[dtype]
        depth = sums * (1 + largest_score(q, segments, scale)) + rounding
        sizes = magnitude(q, segments) * gates.abs()

        def peer() -> Tensor:
            return (naive_attention(q, segments, scale, dtype).out * gates).to(dtype)

        # The errors of a row are one error of its map, and PyTorch sums a few rows in another way.
        many = rows * queries >= 16 and scale == dim**-0.5
        assert_accepted(case, out, naive.out * gates.double(), sizes, depth, peer if many else None)
        plain = [copied(segment) for segment in segments]
        again = call(q.contiguous(), plain, torch.empty_like(out), isa, gate, scale, threads=1)
        assert_same(out, again)

    run(check, 8, KINDS)


def largest_score(q: Tensor, segments: list[Segment], scale: float) -> float:
    """A bound of scores, by how much errors of theirs are errors of probabilities."""
    sizes = [p.k[p.k.isfinite()].abs().double() for s in segments for p in s.pieces]
    largest = max((float(size.max()) for size in sizes if size.numel()), default=0.0)
    return scale * float(q.abs().double().sum(-1).max()) * largest


def copied(segment: Segment) -> Segment:
    """With operands one element after another."""
    pieces = tuple(Piece(p.k.contiguous(), p.v.contiguous(), p.length) for p in segment.pieces)
    parts = {name: getattr(segment, name) for name in ("weight", "bias", "v_mix")}
    same = {name: part.contiguous() if isinstance(part, Tensor) else part for name, part in parts.items()}
    mass = segment.mass
    return replace(segment, pieces=pieces, mass=mass and replace(mass, out=None), **same)
