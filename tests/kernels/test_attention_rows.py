"""attention: what one row asks for or suffers never reaches another, and what is not asked for changes no bit."""

from dataclasses import replace

import pytest
import torch
from attention_cases import CASES, D, H, L, N, R, cases, heads, index, mean, piece, rand, relative, shift, window
from torch import Tensor

from bridle_kernels.attention import Capture, MassShift, Piece, Segment, attention
from numerics import poisoned

PERMUTATION = torch.tensor([2, 0, 3, 1])


def base() -> Segment:
    return Segment((piece(1),))


def rows_of(values: Tensor | None, order: Tensor) -> Tensor | None:
    return values if values is None or values.shape[0] == 1 else values[order].clone()


def permuted(segment: Segment, order: Tensor) -> Segment:
    """The same segment for output rows in another order; K and V stay where they are."""
    own = torch.arange(R, dtype=torch.int32)
    named = {
        name: (own if getattr(segment, name) is None else getattr(segment, name))[order]
        for name in ("k_rows", "v_rows", "q_rows")
    }
    mass = segment.mass
    if mass is not None:
        share = mass.share if isinstance(mass.share, float) else rows_of(mass.share, order)
        columns, windows = rows_of(mass.columns, order), rows_of(mass.window, order)
        assert columns is not None and windows is not None and share is not None
        mass = MassShift(columns, share, windows, None if mass.out is None else torch.zeros_like(mass.out))
    captures = tuple(
        replace(c, rows=torch.argsort(order)[torch.arange(R) if c.rows is None else c.rows.long()],
                out=torch.zeros_like(c.out))
        for c in segment.captures
    )  # fmt: skip
    return replace(
        segment,
        pieces=tuple(Piece(p.k, p.v, rows_of(p.length, order)) for p in segment.pieces),
        weight=segment.weight if isinstance(segment.weight, float) else segment.weight[order],
        bias=rows_of(segment.bias, order),
        v_mix=rows_of(segment.v_mix, order),
        mass=mass,
        capture=captures,
        lse=None if segment.lse is None else torch.zeros_like(segment.lse),
        **named,
    )


@pytest.mark.parametrize("case", CASES)
def test_rows_may_come_in_any_order(case: str) -> None:
    q, segments = rand(0, R, N, H, D), cases()[case]
    straight = attention(q, segments)
    moved = [permuted(segment, PERMUTATION) for segment in segments]
    assert torch.equal(attention(q, moved), straight[PERMUTATION])
    for one, other in zip(segments, moved, strict=True):
        for capture, again in zip(one.captures, other.captures, strict=True):
            assert torch.equal(capture.out, again.out)
        if one.lse is not None and other.lse is not None:
            assert torch.equal(one.lse[PERMUTATION], other.lse)
        if one.mass is not None and one.mass.out is not None and other.mass is not None and other.mass.out is not None:
            assert torch.equal(one.mass.out[PERMUTATION], other.mass.out)


@pytest.mark.parametrize("case", CASES)
def test_nan_in_one_row_stays_there(case: str) -> None:
    """Rows that do not read query row 3 keep their bits, whoever their neighbours are."""
    q = rand(0, R, N, H, D)
    clean = attention(q, cases()[case])
    q[3] = torch.nan
    segments = cases()[case]
    dirty = attention(q, segments)
    reads = torch.tensor([any(s.q_rows is not None and 3 in s.q_rows[r : r + 1] for s in segments) or r == 3
                          for r in range(R)])  # fmt: skip
    assert torch.equal(dirty[~reads], clean[~reads]) and (~reads).any()
    assert torch.equal(dirty, clean) is not bool(clean[reads].any())
    for segment in segments:
        for capture in segment.captures:
            rows = torch.arange(R) if capture.rows is None else capture.rows.long()
            assert capture.out[~reads[rows]].isfinite().all()


@pytest.mark.parametrize("long", [8, 500])
def test_a_row_does_not_depend_on_how_long_its_neighbours_are(long: int) -> None:
    q, short, mates = rand(2, 2, N, H, D), rand(3, 1, 7, H, D), rand(4, 1, long, H, D)
    alone = attention(q[:1], [Segment((Piece(short, short),))])
    both = torch.cat([torch.cat([short, torch.full((1, long - 7, H, D), torch.nan)], 1), mates])
    lengths = index(7, long)
    assert torch.equal(attention(q, [Segment((Piece(both, both, lengths),))])[:1], alone)


def test_absent_rows_and_lengths_of_zero_get_exactly_nothing() -> None:
    q = rand(5, R, N, H, D)
    whole, extra = base(), piece(6)
    extra.k[1], extra.v[1] = torch.nan, torch.inf
    plain = attention(q, [whole])
    dropped = [
        Segment((extra,), k_rows=index(-1, -1, 2, 3)),
        Segment((extra,), v_rows=index(-1, -1, 2, 3)),
        Segment((Piece(extra.k, extra.v, index(0, 0, 7, 7)),)),
        Segment((extra,), torch.tensor([0.0, 0.0, 1.0, 1.0])),
        Segment((extra,), torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(R, N)),
    ]
    for segment in dropped:
        got = attention(q, [whole, segment])
        assert torch.equal(got[:2], plain[:2])
        assert relative(got[2:], plain[2:]) > 0.1
    assert attention(q, [whole, Segment((extra,))])[1].isnan().all()


def test_absent_rows_report_nothing() -> None:
    out, lse, masses = heads(R, L), poisoned((R, H, N)).double(), poisoned((R, H, 3)).double()
    segment = replace(base(), k_rows=index(-1, 1, -1, 3), capture=Capture(None, out), lse=lse)
    attention(
        rand(7, R, N, H, D), [segment, replace(segment, capture=None, lse=None, mass=replace(shift(), out=masses))]
    )
    for empty in (0, 2):
        assert not out[empty].any() and not masses[empty].any() and (lse[empty] == -torch.inf).all()
    assert out[[1, 3]].all() and masses[3].all() and lse[[1, 3]].isfinite().all()


def test_weight_zero_of_a_query_contributes_nothing_but_is_captured() -> None:
    q, out = rand(8, R, N, H, D), mean(R, L)
    weight = torch.ones(R, N)
    weight[:, ::2] = 0.0
    whole = piece(9)
    whole.v[0] = torch.nan
    got = attention(q, [Segment((whole,), weight, capture=Capture(None, out))])
    assert not got[:, ::2].any()
    assert got[0, 1::2].isnan().all() and got[1:, 1::2].all()
    assert (out.sum(-1) - 1.0).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_reporting_changes_no_bit(dtype: torch.dtype) -> None:
    q, k, v = (rand(seed, R, 33, H, 40).to(dtype) for seed in (10, 11, 12))
    plain = Segment(
        (Piece(k, v, index(33, 0, 12, 33)),), torch.tensor([1.0, 1.0, 0.5, 2.0]), bias=rand(13, 1, H, 1, 33)
    )
    out, lse = torch.zeros(R, 33, 33), poisoned((R, H, 33))
    told = replace(plain, capture=Capture(None, out), lse=lse)
    assert torch.equal(attention(q, [told]), attention(q, [plain]))
    assert out.any() and lse[0].isfinite().all()


def test_a_shift_of_nothing_is_no_shift() -> None:
    q = rand(14, R, N, H, D)
    nothing = replace(shift(), share=0.0)
    assert relative(attention(q, [replace(base(), mass=nothing)]), attention(q, [base()])) < 1e-15
    nowhere = MassShift(torch.full((1, 2), -1), 0.9, window(15, 1, 1, N))
    assert relative(attention(q, [replace(base(), mass=nowhere)]), attention(q, [base()])) < 1e-15


@pytest.mark.parametrize("gate", [None, 0.5, torch.tensor(0.25), torch.tensor([1.0, 0.0, -2.0, 0.5])])
def test_gate_and_accumulation(gate: float | Tensor | None) -> None:
    q, segments = rand(16, R, N, H, D), [base(), Segment((piece(17, tokens=2),), 0.5)]
    factor = 1.0 if gate is None else gate[:, None, None] if isinstance(gate, Tensor) and gate.ndim else gate
    wanted = attention(q, segments) * factor
    assert relative(attention(q, segments, gate=gate), wanted) < 1e-15
    before = rand(18, R, N, H * D)
    buffer = poisoned((R, N + 2, H * D + 3)).double()
    out = buffer[:, 1:-1, 1:-2]
    out.copy_(before)
    assert attention(q, segments, gate=gate, out=out) is out
    assert relative(out, before + wanted) < 1e-15
    buffer[:, 1:-1, 1:-2] = torch.nan
    assert buffer.isnan().all(), "written outside out"


def test_gate_of_zero_is_off_to_the_bit() -> None:
    q, before, poison = rand(18, R, N, H, D), rand(19, R, N, H * D), base()
    poison.pieces[0].v[:] = torch.nan
    for gate in (0.0, torch.tensor(0.0), torch.zeros(R)):
        assert torch.equal(attention(q, [poison], gate=gate, out=before.clone()), before)
    assert attention(q, [poison], gate=1.0, out=before.clone()).isnan().all()


def test_captures_add_up_in_strided_buffers_and_write_nowhere_else() -> None:
    q, buffer = rand(20, R, N, H, D), poisoned((3, 5, N + 4)).double()
    out = buffer[1:, 1:3, 2:-2].transpose(1, 2)
    out.zero_()
    columns = torch.tensor([[4, 0], [1, -1]])
    first = Capture(columns, out, index(3, 1), 0.5)
    second = Capture(columns, out, index(3, 1), torch.tensor([2.0, -1.0]))
    attention(q, [replace(base(), capture=first)])
    attention(q, [replace(base(), capture=second)], scale=0.1)
    once, twice = mean(2, 2), mean(2, 2)
    attention(q, [replace(base(), capture=replace(first, out=once, scale=1.0))])
    attention(q, [replace(base(), capture=replace(first, out=twice, scale=1.0))], scale=0.1)
    assert relative(out, 0.5 * once + torch.tensor([2.0, -1.0])[:, None, None] * twice) < 1e-15
    assert not out[1, :, 1].any()
    buffer[1:, 1:3, 2:-2] = torch.nan
    assert buffer.isnan().all(), "written outside out"
