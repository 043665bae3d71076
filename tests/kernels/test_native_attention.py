"""Attention of the C++ core: the acceptance rule for every variant, every term of the algebra, rows and threads."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from attention_cases import CASES, D, H, N, R, cases, index, rand
from naive_attention import Naive, naive_attention
from test_attention_acceptance import KINDS, PROBABILITY_ROUNDING, SIZES, magnitude, segments_of
from torch import Tensor

from bridle_kernels import _core, available_isas
from bridle_kernels.attention import Capture, Piece, Segment, native
from numerics import Guarded, assert_as_good_as_peer, assert_integer_exact, unwritten

DTYPES = (torch.float32, torch.bfloat16)
Terms = tuple[Tensor, Tensor, Tensor, Tensor]
each_isa = pytest.mark.parametrize("isa", [*available_isas(), "emulated_amx"])
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def attention(q: Tensor, segments: list[Segment], isa: str, threads: int = 2, **named: object) -> Tensor:
    assert native.refusal(q, segments) is None
    return native.attention(q, segments, pool=_core.ThreadPool(threads), isa=isa, **named)


def guarded_attention(q: Tensor, segments: list[Segment], isa: str, **named: object) -> Tensor:
    """Written into poison between guards; operands keep their bits."""
    assert native.refusal(q, segments) is None
    rows, queries, heads, dim = q.shape
    out = Guarded.make((rows, queries, heads * dim), q.dtype)
    operands = native.segment_operands(segments, q)
    given = {"gate": [1.0] * rows, "scale": dim**-0.5, **named}
    read = [tensor for s in segments for p in s.pieces for tensor in (p.k, p.v)]
    with unwritten(q, *read, *(operand[name] for operand in operands for name in ("weights", "bias", "v_mix"))):
        _core.attention(_core.ThreadPool(2), q, operands, out.tensor, isa=isa, **given)
    out.check()
    return out.tensor


@cache
def wanted(kind: str, size: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Exact, PyTorch's, and the magnitude of the terms: the same for every variant."""
    q, segments = segments_of(kind, sum(size), size, dtype)
    exact, peer = naive_attention(q, segments), naive_attention(q, segments, dtype=dtype)
    return exact.out, peer.out, magnitude(q, segments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@each_dtype
@each_isa
def test_acceptance(isa: str, dtype: torch.dtype, size: tuple[int, int, int], kind: str) -> None:
    ours = guarded_attention(*segments_of(kind, sum(size), size, dtype), isa)
    depth = size[0] + size[2] + 8 + PROBABILITY_ROUNDING[dtype]
    assert_as_good_as_peer(ours, *wanted(kind, size, dtype), depth)


@cache
def wanted_reports(kind: str, seed: int, size: tuple[int, int, int], dtype: torch.dtype) -> tuple[Naive, Naive]:
    """Exact and PyTorch's."""
    q, segments = segments_of(kind, seed, size, dtype)
    return naive_attention(q, segments), naive_attention(q, segments, dtype=torch.float32)


def reports(kind: str, seed: int, size: tuple[int, int, int], dtype: torch.dtype, isa: str) -> list[Terms]:
    """Of the first segment: ours, exact, PyTorch's, and the magnitude of each thing that is reported."""
    q, segments = segments_of(kind, seed, size, dtype)
    guarded_attention(q, segments, isa)
    exact, peer = wanted_reports(kind, seed, size, dtype)
    first, found = segments[0], []
    for capture, whole, other in zip(first.captures, exact.captures[0], peer.captures[0], strict=True):
        found.append((capture.out, whole, other, whole.abs() + 1.0))
    assert first.lse is not None
    found.append((first.lse, exact.lses[0], peer.lses[0], exact.lses[0].abs() + 8.0))
    if kind == "all":
        assert first.mass is not None and first.mass.out is not None
        wanted_mass, peer_mass = exact.masses[0], peer.masses[0]
        assert wanted_mass is not None and peer_mass is not None
        found.append((first.mass.out, wanted_mass, peer_mass, wanted_mass))
    return found


@pytest.mark.parametrize("kind", ["reporting", "reporting mixed", "all"])
@pytest.mark.parametrize("size", SIZES[1:], ids=str)
@each_dtype
@each_isa
def test_reports(isa: str, dtype: torch.dtype, size: tuple[int, int, int], kind: str) -> None:
    """Sixteen draws of a size with a single query or key: the largest of a few errors is a matter of luck."""
    seeds = range(sum(size), sum(size) + (16 if 1 in size[1:] else 1))
    draws = [reports(kind, seed, size, dtype, isa) for seed in seeds]
    for same in zip(*draws, strict=True):
        ours, exact, peer, magnitudes = (torch.stack(parts) for parts in zip(*same, strict=True))
        assert_as_good_as_peer(ours, exact, peer, magnitudes, sum(size) + 8)


def single(segment: Segment) -> Segment:
    """In float32, with buffers of its own."""
    pieces = tuple(Piece(p.k.float(), p.v.float(), p.length) for p in segment.pieces)
    captures = tuple(replace(c, out=torch.zeros_like(c.out, dtype=torch.float32)) for c in segment.captures)
    mass = segment.mass
    if mass is not None and mass.out is not None:
        mass = replace(mass, out=mass.out.float())
    return replace(
        segment, pieces=pieces, capture=captures, mass=mass, lse=None if segment.lse is None else segment.lse.float()
    )


@pytest.mark.parametrize("name", CASES)
@each_isa
def test_every_term(isa: str, name: str) -> None:
    segments = [single(segment) for segment in cases()[name]]
    q = rand(99, R, N, H, D).float()
    gate = torch.tensor([1.0, 0.0, -0.5, 2.0])
    ours = attention(q, segments, isa, gate=gate)
    exact = naive_attention(q, segments)
    torch.testing.assert_close(ours.double(), exact.out * gate[:, None, None].double(), rtol=2e-6, atol=2e-6)
    for segment, captures, lse, mass in zip(segments, exact.captures, exact.lses, exact.masses, strict=True):
        for capture, wanted in zip(segment.captures, captures, strict=True):
            torch.testing.assert_close(capture.out.double(), wanted, rtol=2e-6, atol=2e-6)
        if segment.lse is not None:
            torch.testing.assert_close(segment.lse.double(), lse, rtol=2e-6, atol=2e-6)
        if segment.mass is not None and segment.mass.out is not None:
            torch.testing.assert_close(segment.mass.out.double(), mass, rtol=2e-6, atol=2e-6)


def integers(seed: int, *shape: int) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


@each_dtype
@each_isa
def test_even_maps_of_integers_are_exact(isa: str, dtype: torch.dtype) -> None:
    """Queries of zero see 64 keys alike: sums of integers over a power of two."""
    k, v = (integers(seed, 2, 64, 3, 24).to(dtype) for seed in (1, 2))
    out = torch.zeros(2, 50, 64)
    segment = Segment((Piece(k, v),), capture=Capture(None, out))
    ours = guarded_attention(torch.zeros(2, 50, 3, 24, dtype=dtype), [segment], isa)
    assert_integer_exact(ours, v.double().mean(1, keepdim=True).expand(2, 50, 3, 24).flatten(2))
    assert_integer_exact(out, torch.full_like(out, 1 / 64).double())


@pytest.mark.parametrize("tied", [1, 4])
@pytest.mark.parametrize("dim, keys", [(40, 77), (64, 257), (3, 1025)])
@each_dtype
@each_isa
def test_scores_of_ten_thousand(isa: str, dtype: torch.dtype, dim: int, keys: int, tied: int) -> None:
    """And of minus ten thousand: one dominant key gives its value, four that are alike the mean of theirs, exactly."""
    q, k = torch.zeros(2, 33, 2, dim), integers(3, 2, keys, 2, dim)
    v = integers(4, 2, keys, 2, dim) if tied > 1 else rand(4, 2, keys, 2, dim)
    q[..., -1], k[..., -1] = 100.0, -100.0
    chosen = torch.tensor([keys - 1, 0, keys // 2, 5][:tied])
    k[:, chosen, :, -1] = 100.0
    q, k, v = (tensor.to(dtype) for tensor in (q, k, v))
    capture = Capture(None, torch.zeros(2, 33, keys))
    ours = guarded_attention(q, [Segment((Piece(k, v),), capture=capture)], isa, scale=1.0)
    assert_integer_exact(ours, v[:, chosen].double().mean(1, keepdim=True).expand(-1, 33, -1, -1).flatten(2))
    shares = torch.zeros(2, 33, keys, dtype=torch.float64).index_fill_(2, chosen, 1 / tied)
    assert_integer_exact(capture.out, shares)


@pytest.mark.parametrize("growth, least, most", [(0.02, 4.0, 32.0), (0.5, 64.0, 128.0), (1.5, 150.0, 600.0)])
@each_dtype
@each_isa
def test_maxima_that_grow_from_block_to_block(
    isa: str, dtype: torch.dtype, growth: float, least: float, most: float
) -> None:
    """Small ones, some on both sides of 64, and large ones."""
    q, k, v = (rand(seed, 2, n, 2, 40) for seed, n in ((12, 33), (13, 700), (14, 700)))
    k = k * (1.0 + growth * torch.arange(700) / 20.0)[:, None, None]
    q, k, v = (tensor.to(dtype) for tensor in (q, k, v))
    segments = [Segment((Piece(k, v),))]
    ours = guarded_attention(q, segments, isa)
    exact, peer = naive_attention(q, segments).out, naive_attention(q, segments, dtype=dtype).out
    largest = torch.einsum("rqhd,rkhd->rhqk", q.double(), k.double()).amax() / 40**0.5
    assert least < largest < most
    # A score is rounded to so many units of the last place of what it is taken from.
    depth = 40 + 700 + float(largest) + PROBABILITY_ROUNDING[dtype]
    assert_as_good_as_peer(ours, exact, peer, magnitude(q, segments), depth)


@each_dtype
@each_isa
def test_the_lowest_bias_everywhere_is_no_bias_at_all(isa: str, dtype: torch.dtype) -> None:
    """As with PyTorch's masks of `finfo.min`: a query that sees nothing attends to everything alike."""
    q, v = rand(15, 2, 5, 2, 40).to(dtype), integers(16, 2, 64, 2, 40).to(dtype)
    bias = torch.zeros(2, 1, 5, 64)
    bias[:, :, 1::2] = torch.finfo(torch.float32).min
    k = torch.zeros(2, 64, 2, 40, dtype=dtype)
    ours = guarded_attention(q, [Segment((Piece(k, v),), bias=bias)], isa)
    assert_integer_exact(ours, v.double().mean(1, keepdim=True).expand(2, 5, 2, 40).flatten(2))


@each_dtype
@each_isa
def test_causal_and_float32_scores(isa: str, dtype: torch.dtype) -> None:
    q, k, v = (rand(seed, 2, 77, 4, 32).to(dtype) for seed in (3, 4, 5))
    for float32_scores in (False, True):
        ours = guarded_attention(q, [Segment((Piece(k, v),))], isa, causal=True, float32_scores=float32_scores)
        exact, peer = (
            torch.nn.functional.scaled_dot_product_attention(
                *(t.to(kind).transpose(1, 2) for t in (q, k, v)), is_causal=True
            ).transpose(1, 2)
            for kind in (torch.float64, dtype)
        )
        rounding = PROBABILITY_ROUNDING[dtype]
        terms = v.double().abs().amax(1, keepdim=True).expand_as(exact).flatten(2)
        assert_as_good_as_peer(ours, exact.flatten(2), peer.flatten(2), terms, 117 + rounding)


@each_dtype
@each_isa
def test_rows_do_not_know_their_neighbours(isa: str, dtype: torch.dtype) -> None:
    """Nor does the number of threads matter, nor what lies behind a length, nor whether anything is reported."""
    q, k, v = (rand(seed, 3, n, 2, 40).to(dtype) for seed, n in ((6, 130), (7, 601), (8, 601)))
    lengths = index(601, 77, 272)
    together = attention(q, [Segment((Piece(k, v, lengths),))], isa, threads=1)
    for threads in (2, 5):
        assert torch.equal(attention(q, [Segment((Piece(k, v, lengths),))], isa, threads), together)
    reporting = Segment(
        (Piece(k, v, lengths),), capture=Capture(None, torch.zeros(3, 130, 601)), lse=torch.zeros(3, 2, 130)
    )
    assert torch.equal(attention(q, [reporting], isa), together)
    logarithms = Segment((Piece(k, v, lengths),), lse=torch.zeros(3, 2, 130))
    assert torch.equal(attention(q, [logarithms], isa), together)
    assert reporting.lse is not None and torch.equal(logarithms.lse, reporting.lse)
    for row, length in enumerate(lengths.tolist()):
        alone = Segment((Piece(k[row : row + 1, :length].clone(), v[row : row + 1, :length].clone()),))
        assert torch.equal(attention(q[row : row + 1].clone(), [alone], isa)[0], together[row])
        for part in (k, v):
            part[row, length:] = torch.nan
    assert torch.equal(attention(q, [Segment((Piece(k, v, lengths),))], isa), together)
    v[1, 3] = torch.nan
    poisoned_run = attention(q, [Segment((Piece(k, v, lengths),))], isa)
    assert torch.equal(poisoned_run[[0, 2]], together[[0, 2]]) and poisoned_run[1].isnan().all()


@each_dtype
@each_isa
def test_results_are_added_inside_their_bounds(isa: str, dtype: torch.dtype) -> None:
    q, k, v = (rand(seed, 2, n, 2, 24).to(dtype) for seed, n in ((9, 13), (10, 9), (11, 9)))
    plain = attention(q, [Segment((Piece(k, v),))], isa)
    target = Guarded.make((2, 13, 48), dtype)
    out = target.tensor.fill_(2.0)
    assert attention(q, [Segment((Piece(k, v),))], isa, out=out) is out
    torch.testing.assert_close(
        out.float(), plain.float() + 2.0, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6
    )
    target.check()
    assert torch.equal(attention(q, [], isa), torch.zeros(2, 13, 48, dtype=dtype))


@each_isa
def test_strided_operands(isa: str) -> None:
    """Views into a fused projection are read as they are; channels that are not consecutive are copied."""
    fused = rand(12, 2, 21, 3, 2, 16).float()
    q, k, v = fused.unbind(2)
    wanted = attention(*(q.contiguous(), [Segment((Piece(k.contiguous(), v.contiguous()),))]), isa)
    assert torch.equal(attention(q, [Segment((Piece(k, v),))], isa), wanted)
    turned = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v)]
    assert torch.equal(attention(turned[0], [Segment((Piece(*turned[1:]),))], isa), wanted)


def test_what_is_not_served_is_said() -> None:
    q = torch.randn(1, 4, 1, 8)
    segment = Segment((Piece(q, q),))
    assert native.refusal(q, [segment]) is None
    assert "one dtype" in str(native.refusal(q.half(), [segment]))
    assert "one dtype" in str(native.refusal(q.bfloat16(), [segment]))
    assert "float32" in str(native.refusal(q, [replace(segment, lse=torch.zeros(1, 1, 4, dtype=torch.float64))]))
    assert "gradient" in str(native.refusal(q.clone().requires_grad_(), [segment]))
    with torch.no_grad():
        assert native.refusal(q.clone().requires_grad_(), [segment]) is None
    out = torch.zeros(1, 8, 4).transpose(1, 2)
    assert "one element after another" in str(native.refusal(q, [segment], out))
    assert "CPU" in str(native.refusal(q.to("meta"), [segment]))
