"""Checks of the gradients of the Triton attention against autograd of the definition: on a GPU, or in the interpreter."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from attention_cases import rand, relative
from gpu_attention_checks import Check, moved
from gradient_sums import checks as checks_of_sums
from test_attention_acceptance import PROBABILITY_ROUNDING
from torch import Tensor

from bridle_kernels.attention import Capture, Piece, Segment, gpu, reference
from device_references import plain_arithmetic
from numerics import assert_as_good_as_peer

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
R, H = 2, 2
SIZES = [(40, 17, 77), (64, 33, 20), (160, 7, 19)]
"""Head dimension, queries, keys: small enough for the interpreter."""
PUBLISHED = [(40, 4096, 4096), (40, 4096, 77), (64, 1024, 1024), (160, 256, 256), (160, 64, 77)]
"""Of SD 1.5 and SDXL, for a GPU."""
VOID = ((40, 4096, 77), torch.bfloat16)
"""dK is a sum over 4096 queries of terms of both signs: what is left of it is less than the bound of bfloat16. `one_sign`
is that size with sums that add up."""
Attention = Callable[..., Tensor]
Upstream = Callable[[Tensor], Tensor]


def checks(device: str) -> Iterator[Check]:
    """Names, and functions that raise AssertionError."""
    for name in CASES:
        yield f"algebra: {name}", lambda name=name: algebra(name, device)
    for dtype in DTYPES:
        for size in SIZES if device == "cpu" else SIZES + PUBLISHED:
            if (size, dtype) != VOID:
                yield f"accepted {size} {dtype}", lambda a=(size, dtype): accepted(*a, device)
        size = (40, 65, 19) if device == "cpu" else VOID[0]
        yield f"one sign {size} {dtype}", lambda a=(size, dtype): accepted(*a, device, one_sign)
    yield from checks_of_sums(device)
    yield "only some", lambda: only_some(device)
    yield "nothing is read behind a length", lambda: poison(device)
    yield "what has none", lambda: refused(device)


def plain(size: tuple[int, int, int], rows: int = R) -> tuple[Tensor, Segment]:
    """Queries and one segment of float32."""
    dim, queries, keys = size
    q, k, v = (rand(seed, rows, n, H, dim).float() for seed, n in ((1, queries), (2, keys), (3, keys)))
    return q, Segment((Piece(k, v),))


def two_pieces() -> tuple[Tensor, list[Segment]]:
    q, segment = plain((8, 19, 21), 3)
    k, v = rand(4, 1, 5, H, 8).float(), rand(5, 1, 5, H, 8).float()
    lengths = (torch.tensor([21, 0, 13], dtype=torch.int32), torch.tensor([2, 0, 5], dtype=torch.int32))
    pieces = (replace(segment.pieces[0], length=lengths[0]), Piece(k, v, lengths[1]))
    bias, capture = rand(9, 1, 1, 1, 26).float(), Capture(torch.tensor([[23, 4]]), torch.zeros(3, 19, 2))
    return q, [replace(segment, pieces=pieces, weight=rand(6, 3, 19).float(), bias=bias, capture=capture)]


def row_maps() -> tuple[Tensor, list[Segment]]:
    """Rows of Q, K and V that several rows read, one that nobody does, and rows without the segment."""
    q, segment = plain((20, 9, 18), 4)
    index = {
        "q_rows": torch.tensor([1, 1, 3, 0]),
        "k_rows": torch.tensor([2, 2, -1, 0]),
        "v_rows": torch.tensor([0, 2, 2, 2]),
    }
    other = replace(plain((20, 9, 18), 4)[1], weight=torch.tensor([0.5, 0.0, -2.0, 1.0]))
    return q, [replace(segment, **index), other]


def biased() -> tuple[Tensor, list[Segment]]:
    q, segment = plain((8, 9, 17))
    bias = rand(7, 1, H, 9, 17).float()
    bias[0, 1, 2] = bias[0, 0, :, 5] = -torch.inf
    return q, [replace(segment, bias=bias, lse=torch.zeros(R, H, 9))]


def captured() -> tuple[Tensor, list[Segment]]:
    """Gradients into columns per head and of the mean of heads, one named twice, of chosen rows, and into the sum."""
    q, segment = plain((8, 21, 18), 3)
    twice = Capture(torch.tensor([[3, 3, -1, 17]]), torch.zeros(3, H, 21, 4), scale=0.5)
    mean = Capture(
        torch.tensor([[0, 3], [5, 1]]), torch.zeros(2, 21, 2), torch.tensor([2, 0]), torch.tensor([2.0, -1.0])
    )
    every = Capture(None, torch.zeros(3, 21, 18))
    return q, [replace(segment, capture=(twice, mean, every), lse=torch.zeros(3, H, 21))]


def mixed() -> tuple[Tensor, list[Segment]]:
    q, segment = plain((8, 12, 10))
    mix = torch.eye(10) + 0.3 * rand(8, R, 10, 10).float()
    capture = Capture(torch.tensor([[2, 4]]), torch.zeros(R, 12, 2))
    return q, [replace(segment, v_mix=mix, capture=capture)]


CASES: dict[str, Callable[[], tuple[Tensor, list[Segment]]]] = {
    "pieces and lengths": two_pieces,
    "row maps": row_maps,
    "bias": biased,
    "captures": captured,
    "pre-mix": mixed,
}


def upstream(like: Tensor) -> Tensor:
    """Fixed values in [-1, 1], the same in every dtype."""
    count = torch.arange(like.numel(), dtype=torch.float64)
    return (count * 0.7).sin().mul(64).round().div(64).view(like.shape).to(like)


def one_sign(like: Tensor) -> Tensor:
    """Fixed values in [0.5, 1.5]: with queries of one sign, terms of dK and dV do not cancel."""
    return 0.5 + upstream(like).abs()


def gradients(
    attention: Attention,
    q: Tensor,
    segments: list[Segment],
    convert: Callable[[Tensor], Tensor],
    into: Upstream = upstream,
) -> list[Tensor]:
    """Of Q and of K and V of every piece, for gradients into the output and all reports that differ by element."""
    held: dict[int, Tensor] = {}

    def leaf(tensor: Tensor) -> Tensor:
        return held.setdefault(id(tensor), convert(tensor).requires_grad_())

    q = leaf(q)
    given = []
    for s in segments:
        pieces = tuple(replace(p, k=leaf(p.k), v=leaf(p.v), length=moved(p.length, convert)) for p in s.pieces)
        rest = moved(replace(s, pieces=()), lambda t: convert(t).clone())
        given.append(replace(rest, pieces=pieces))
    out = attention(q, given)
    reports = [report for s in given for report in (*(c.out for c in s.captures), s.lse) if report is not None]
    total = sum(
        ((r.nan_to_num(0.0, 0.0, 0.0) * into(r)).sum() for r in (out, *reports)), torch.zeros((), device=q.device)
    )
    total.backward()
    return [t.grad if t.grad is not None else torch.zeros_like(t) for t in held.values()]


@plain_arithmetic()
def defined(
    q: Tensor, segments: list[Segment], dtype: torch.dtype, device: str, into: Upstream = upstream
) -> list[Tensor]:
    """Those of the definition."""
    return gradients(reference.attention, q, segments, converter(dtype, device), into)


def converter(dtype: torch.dtype, device: str) -> Callable[[Tensor], Tensor]:
    return lambda t: (t.detach().to(dtype) if t.is_floating_point() else t).to(device)


def algebra(name: str, device: str) -> None:
    """Every term of the algebra."""
    q, segments = CASES[name]()
    ours = gradients(gpu.attention, q, segments, converter(torch.float32, device))
    exact = defined(q, segments, torch.float64, device)
    assert len(ours) == len(exact) >= 3
    for one, best in zip(ours, exact, strict=True):
        assert relative(one, best) < 4e-6


def accepted(size: tuple[int, int, int], dtype: torch.dtype, device: str, into: Upstream = upstream) -> None:
    """The acceptance rule."""
    q, segment = given(size, dtype, device, into)
    ours, again = (gradients(gpu.attention, q, [segment], converter(dtype, device), into) for _ in range(2))
    assert all(torch.equal(one, more) for one, more in zip(ours, again, strict=True)), "two runs differ"
    judged(ours, q, segment, into)


def given(
    size: tuple[int, int, int], dtype: torch.dtype, device: str, into: Upstream = upstream
) -> tuple[Tensor, Segment]:
    """`plain` in a dtype; where what flows in has one sign, queries have too."""
    q, segment = plain(size)
    q = q.abs() if into is one_sign else q
    return moved(q, converter(dtype, device)), moved(segment, converter(dtype, device))


def judged(ours: list[Tensor], q: Tensor, segment: Segment, into: Upstream = upstream) -> None:
    """Raises AssertionError where gradients of `given` break the acceptance rule."""
    dtype, device = q.dtype, str(q.device)
    exact, peer = (defined(q, [segment], kind, device, into) for kind in (torch.float64, dtype))
    depth = q.shape[3] + max(q.shape[1], segment.pieces[0].k.shape[1]) + 8 + PROBABILITY_ROUNDING[dtype]
    for one, best, other, terms in zip(ours, exact, peer, magnitudes(q, segment, into), strict=True):
        assert_as_good_as_peer(one, best, other, terms, depth)


@plain_arithmetic()
def magnitudes(q: Tensor, segment: Segment, upstream: Upstream) -> list[Tensor]:
    """Sums of the absolute values of all terms of dQ, dK and dV."""
    q, k, v = (t.double() for t in (q, segment.pieces[0].k, segment.pieces[0].v))
    scale = q.shape[3] ** -0.5
    into = (
        upstream(torch.zeros(q.shape[0], q.shape[1], q.shape[2] * q.shape[3], device=q.device))
        .double()
        .view(q.shape)
        .abs()
    )
    share = torch.einsum("rnhd,rlhd->rhnl", q, k).mul(scale).softmax(-1)
    flowing = torch.einsum("rnhd,rlhd->rhnl", into, v.abs())
    slope = share * (flowing + (share * flowing).sum(-1, keepdim=True))
    return [
        scale * torch.einsum("rhnl,rlhd->rnhd", slope, k.abs()),
        scale * torch.einsum("rhnl,rnhd->rlhd", slope, q.abs()),
        torch.einsum("rhnl,rnhd->rlhd", share, into),
    ]


def only_some(device: str) -> None:
    """Where keys and values want none, as those of text, the gradient of the queries is the same."""
    q, segment = plain((40, 9, 20))
    both = gradients(gpu.attention, q, [segment], converter(torch.float32, device))[0]
    given, leaf = moved(segment, lambda t: t.to(device)), q.to(device).requires_grad_()
    (gpu.attention(leaf, [given]) * upstream(torch.zeros(R, 9, H * 40)).to(device)).sum().backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, both)
    assert given.pieces[0].k.grad is None


def poison(device: str) -> None:
    """What lies behind a length has no part, and gets a gradient of zero."""
    q, segment = plain((40, 9, 20))
    piece = replace(segment.pieces[0], length=torch.tensor([13, 20], dtype=torch.int32))
    convert = converter(torch.float32, device)
    clean = gradients(gpu.attention, q, [replace(segment, pieces=(piece,))], convert)
    k, v = piece.k.clone(), piece.v.clone()
    k[0, 13:], v[0, 13:] = torch.nan, torch.inf
    spoiled = gradients(gpu.attention, q, [replace(segment, pieces=(replace(piece, k=k, v=v),))], convert)
    assert all(torch.equal(one, other) for one, other in zip(clean, spoiled, strict=True))
    assert all((gradient[0, 13:] == 0.0).all() for gradient in spoiled[1:])
    k[0, 3] = torch.nan
    seen = gradients(gpu.attention, q, [replace(segment, pieces=(replace(piece, k=k, v=v),))], convert)
    assert seen[0].isnan().any(), "the control"


def refused(device: str) -> None:
    """A bias that learns is left to the definition; where nothing learns there is no graph."""
    q, segment = plain((8, 9, 20))
    learning = replace(segment, bias=torch.zeros(1, 1, 1, 20, requires_grad=True))
    assert gpu.refusal(q, [segment]) is None and "gradient" in str(gpu.refusal(q, [learning]))
    assert not gpu.attention(q.to(device), [moved(segment, lambda t: t.to(device))]).requires_grad
