"""Checks of the Triton attention against the naive method: on a GPU, or in Triton's interpreter on the CPU."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any
from unittest import mock

import torch
from attention_cases import CASES, D, H, N, R, cases, rand, relative
from naive_attention import Naive, naive_attention
from test_attention_acceptance import PROBABILITY_ROUNDING, magnitude, segments_of
from torch import Tensor

from bridle_kernels.attention import Piece, Segment, gpu, wide
from bridle_kernels.triton_ops import TritonOps
from device_references import plain_arithmetic
from numerics import assert_as_good_as_peer

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = [(8, 17, 33), (40, 17, 77), (64, 16, 154), (80, 17, 20), (96, 9, 5), (111, 5, 19), (128, 7, 40), (160, 9, 33)]
"""Head dimension, queries, keys: small enough for the interpreter."""
PUBLISHED = [
    (40, 4096, 4096),
    (40, 4096, 77),
    (80, 1024, 1024),
    (160, 256, 256),
    (160, 64, 77),
    (64, 4096, 4096),
    (64, 1024, 77),
]
"""Of SD 1.5, SD 2 and SDXL, for a GPU."""
WIDE = [(264, 17, 33), (512, 13, 21)]
"""Head dimensions above those of the fused kernel."""
WIDE_PUBLISHED = [(512, 1024, 1024)]
"""Of autoencoders, for a GPU."""
Check = tuple[str, Callable[[], None]]


def moved(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(part, change) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: moved(getattr(value, f.name), change) for f in fields(value)})
    return value


def placed(value: Any, device: str) -> Any:
    """A copy of a value on the device."""
    return moved(value, lambda t: t.to(device, copy=True))


def attend(q: Tensor, segments: list[Segment], **named: Any) -> tuple[Tensor, list[Segment]]:
    """The kernels' output, and a copy of the segments with what was reported."""
    given = moved(segments, torch.clone)
    assert gpu.refusal(q, given) is None
    return gpu.attention(q, given, **named), given


@plain_arithmetic()
def naive(q: Tensor, segments: list[Segment], dtype: torch.dtype = torch.float64) -> Naive:
    """The method, where the tensors are."""
    return naive_attention(q, segments, dtype=dtype)


def checks(device: str) -> Iterator[Check]:
    """Names, and functions that raise AssertionError."""
    for name in CASES:
        yield f"algebra: {name}", lambda name=name: algebra(name, device)
    for dtype in DTYPES:
        for size in SIZES if device == "cpu" else SIZES + PUBLISHED:
            for kind in ("plain", "all") if size[0] in (40, 160) and size[2] <= 77 else ("plain",):
                yield f"{kind} {size} {dtype}", lambda a=(kind, size, dtype): accepted(*a, device)
        for size in WIDE if device == "cpu" else WIDE + WIDE_PUBLISHED:
            for hides in (False, True):
                yield f"wide {size} causal={hides} {dtype}", lambda a=(size, dtype, hides): wide_heads(*a, device)
    yield "causal", lambda: causal(device)
    yield "gate and sum", lambda: gate_and_sum(device)
    yield "poison", lambda: poison(device)


def algebra(name: str, device: str) -> None:
    """Every term of the algebra, alone and together."""
    segments = placed(moved(cases()[name], lambda t: t.float() if t.is_floating_point() else t), device)
    q = rand(77, R, N, H, D).float().to(device)
    out, filled = attend(q, segments)
    exact = naive(q, segments)
    assert relative(out, exact.out) < 2e-6
    for s, captures, masses, lse in zip(filled, exact.captures, exact.masses, exact.lses, strict=True):
        for capture, wanted in zip(s.captures, captures, strict=True):
            assert relative(capture.out, wanted) < 4e-6
        if s.mass is not None and s.mass.out is not None:
            assert masses is not None and relative(s.mass.out, masses) < 4e-6
        if s.lse is not None:
            assert torch.equal(s.lse == -torch.inf, lse == -torch.inf)
            assert ((s.lse.double() - lse).abs().nan_to_num(0.0) < 4e-6).all()


def accepted(kind: str, size: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    """The acceptance rule."""
    q, segments = placed(segments_of(kind, sum(size), size, dtype), device)
    out, filled = attend(q, segments)
    again, _ = attend(q, segments)
    assert torch.equal(out, again), "two runs differ"
    exact, peer = naive(q, segments), naive(q, segments, dtype)
    depth = size[0] + size[2] + 8 + PROBABILITY_ROUNDING[dtype]
    assert_as_good_as_peer(out, exact.out, peer.out, magnitude(q, segments), depth)
    reported = naive(q, segments, torch.float32)
    for s, wanted, other in zip(filled, exact.captures, reported.captures, strict=True):
        for capture, best, near in zip(s.captures, wanted, other, strict=True):
            assert_as_good_as_peer(capture.out, best, near, best.abs() + 1.0, depth)


def causal(device: str) -> None:
    """A query sees the keys up to its own."""
    q, segments = placed(segments_of("plain", 5, (8, 37, 37), torch.float32), device)
    plain = Segment(segments[0].pieces)
    out, _ = attend(q, [plain], causal=True)
    hiding = torch.full((37, 37), -torch.inf, device=device).triu(1)[None, None]
    assert relative(out, naive(q, [replace(plain, bias=hiding)]).out) < 2e-6


def wide_heads(size: tuple[int, int, int], dtype: torch.dtype, hides: bool, device: str) -> None:
    """The acceptance rule for product, softmax and product in slices of five queries; if causal, K and V are of one row."""
    q, segments = segments_of("plain", sum(size), size, dtype)
    (rows, queries, heads, _), keys = q.shape, size[2]
    k, v = (t[:1] if hides else t for t in (segments[0].pieces[0].k, segments[0].pieces[0].v))
    plain = Segment((Piece(k, v),))
    given = moved(plain, lambda t: t.to(device))
    few = mock.patch.object(wide, "MAP_ELEMENTS", rows * heads * keys * 5 + 1)
    with few, mock.patch.object(wide, "attention", wraps=wide.attention) as served:
        out, again = (TritonOps().attention(q.to(device), [given], causal=hides).cpu() for _ in range(2))
    assert served.call_count == 2 and torch.equal(out, again) and queries > 10
    hiding = torch.full((1, 1, queries, keys), -torch.inf).triu(1) if hides else torch.zeros(1, 1, 1, 1)
    wanted = [replace(plain, bias=hiding)]
    exact, peer = naive_attention(q, wanted), naive_attention(q, wanted, dtype=dtype)
    depth = size[0] + keys + 8 + PROBABILITY_ROUNDING[dtype]
    assert_as_good_as_peer(out, exact.out, peer.out, magnitude(q, wanted), depth)


def gate_and_sum(device: str) -> None:
    """The result is scaled per row and added to what is there; a gate of 0 adds nothing."""
    q, segments = placed(segments_of("plain", 6, (8, 9, 7), torch.float32), device)
    before = rand(8, *q.shape[:2], q.shape[2] * q.shape[3]).float().to(device)
    gate = torch.tensor([0.5, 0.0], device=device)
    out, _ = attend(q, segments, gate=gate, out=before.clone())
    wanted = before + gate[:, None, None] * naive(q, segments).out
    assert relative(out, wanted) < 2e-6 and torch.equal(out[1], before[1])


def poison(device: str) -> None:
    """What lies behind a length, in an absent row, or under a weight of 0 is never read."""
    q, segments = placed(segments_of("plain", 9, (40, 9, 20), torch.float32), device)
    k, v = (t.clone() for t in (segments[0].pieces[0].k, segments[0].pieces[0].v))
    length = torch.tensor([13, 20], dtype=torch.int32, device=device)
    clean = Segment((replace(segments[0].pieces[0], length=length),))
    wanted, _ = attend(q, [clean])
    k[0, 13:], v[0, 13:] = torch.nan, torch.inf
    spoiled = replace(clean, pieces=(replace(clean.pieces[0], k=k, v=v),))
    nothing = replace(
        spoiled, pieces=(replace(spoiled.pieces[0], v=v * torch.nan),), weight=torch.zeros(2, device=device)
    )
    assert torch.equal(attend(q, [spoiled, nothing])[0], wanted)
    v[0, 3] = torch.nan
    seen = replace(clean, pieces=(replace(clean.pieces[0], v=v),))
    assert attend(q, [seen])[0].isnan().any(), "the control"
