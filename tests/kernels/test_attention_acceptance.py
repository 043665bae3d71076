"""attention: the acceptance rule for every dtype and head dimension, exact cases, and what is held in memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import relative
from naive_attention import naive_attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bridle_kernels.attention import Capture, MassShift, Piece, Segment, attention
from numerics import assert_as_good_as_peer, poisoned

R, H = 2, 2
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = [
    (1, 7, 1), (3, 1, 7), (8, 64, 77), (33, 97, 5), (40, 96, 77), (59, 7, 154), (64, 65, 33), (80, 17, 77), (96, 9, 20),
    (111, 31, 64), (128, 7, 257), (160, 15, 77), (320, 8, 1), (384, 13, 85), (512, 64, 64), (640, 5, 16), (1024, 3, 77),
]  # fmt: skip
KINDS = ("plain", "mixed", "shifted", "all")
PROBABILITY_ROUNDING = {torch.float32: 0, torch.float16: 2**13, torch.bfloat16: 2**16}
"""PyTorch's fused kernel keeps probabilities in the dtype of V: each term is rounded once in it, which is as much as that
many roundings in float32."""
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def segments_of(kind: str, seed: int, size: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, list[Segment]]:
    """Queries [R, N, H, d] and fresh segments; `size` is (d, N, L)."""
    dim, queries, keys = size
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    q, k, v = (rand(R, n, H, dim).to(dtype) for n in (queries, keys, keys))
    plain = Segment((Piece(k, v),), 0.5 + rand(R).abs(), bias=rand(1, H, 1, keys))
    columns = torch.tensor([[0, keys // 2, -1, keys - 1]])
    mixed = replace(plain, v_mix=torch.eye(keys) + 0.3 * rand(R, keys, keys) / keys**0.5)
    window = rand(1, 4, queries).softmax(-1)
    shift = MassShift(columns, 0.25 * torch.rand(1, 4, generator=generator), window, poisoned((R, H, 4)))
    shifted = replace(plain, mass=shift)
    capture = (Capture(columns, torch.zeros(R, H, queries, 4)), Capture(None, torch.zeros(R, queries, keys)))
    reporting = replace(plain, capture=capture, lse=poisoned((R, H, queries)))
    everything = replace(mixed, mass=shift, capture=capture, lse=poisoned((R, H, queries)))
    return q, {
        "plain": [plain],
        "mixed": [mixed],
        "shifted": [shifted],
        "reporting": [reporting],
        "reporting mixed": [replace(reporting, v_mix=mixed.v_mix)],
        "all": [everything, plain],
    }[kind]


def magnitude(q: Tensor, segments: list[Segment]) -> Tensor:
    """The sum of the absolute values of all terms of each element, float64 [R, N, H*d]."""
    absolute = []
    for s in segments:
        pieces = tuple(Piece(p.k, p.v.abs(), p.length) for p in s.pieces)
        absolute.append(
            replace(s, pieces=pieces, v_mix=None if s.v_mix is None else s.v_mix.abs(), weight=abs(s.weight))
        )
    return naive_attention(q, absolute).out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@each_dtype
def test_acceptance(dtype: torch.dtype, size: tuple[int, int, int], kind: str) -> None:
    q, segments = segments_of(kind, sum(size), size, dtype)
    ours = attention(q, segments)
    exact, peer = naive_attention(q, segments), naive_attention(q, segments, dtype=dtype)
    depth = size[0] + size[2] + 8 + (0 if kind == "shifted" else PROBABILITY_ROUNDING[dtype])
    assert_as_good_as_peer(ours, exact.out, peer.out, magnitude(q, segments), depth)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", ["reporting", "reporting mixed", "all"])
@pytest.mark.parametrize("size", SIZES[1:], ids=str)
@each_dtype
def test_reports_are_float32_whatever_the_inputs(
    dtype: torch.dtype, size: tuple[int, int, int], kind: str, gradients: bool
) -> None:
    q, segments = segments_of(kind, sum(size), size, dtype)
    with torch.set_grad_enabled(gradients):
        attention(q, segments)
    exact, peer = naive_attention(q, segments), naive_attention(q, segments, dtype=torch.float32)
    depth = size[0] + size[2] + 8
    for capture, wanted, other in zip(segments[0].captures, exact.captures[0], peer.captures[0], strict=True):
        assert_as_good_as_peer(capture.out, wanted, other, wanted.abs() + 1.0, depth)
    lse = segments[0].lse
    assert lse is not None
    assert_as_good_as_peer(lse, exact.lses[0], peer.lses[0], exact.lses[0].abs() + 8.0, depth)
    mass, wanted_mass, peer_mass = segments[0].mass, exact.masses[0], peer.masses[0]
    if kind == "all":
        assert mass is not None and mass.out is not None and wanted_mass is not None and peer_mass is not None
        assert_as_good_as_peer(mass.out, wanted_mass, peer_mass, wanted_mass, depth + size[1])


MISTAKES = {
    "last key dropped": lambda s: replace(s, pieces=tuple(Piece(p.k, p.v, torch.full((R,), p.k.shape[1] - 1).int())
                                                          for p in s.pieces)),
    "heads of the bias swapped": lambda s: replace(s, bias=s.bias.flip(1)),
    "rows of V swapped": lambda s: replace(s, v_rows=torch.tensor([1, 0])),
    "weight forgotten": lambda s: replace(s, weight=1.0),
    "mix transposed": lambda s: replace(s, v_mix=s.v_mix.transpose(1, 2)),
    "share forgotten": lambda s: replace(s, mass=replace(s.mass, share=0.0)),
    "column off by one": lambda s: replace(s, mass=replace(s.mass, columns=(s.mass.columns + 1).clamp(max=76))),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
@each_dtype
def test_the_rule_sees_mistakes(dtype: torch.dtype, mistake: str) -> None:
    q, segments = segments_of("all", 1, (40, 96, 77), dtype)
    exact, peer = naive_attention(q, segments), naive_attention(q, segments, dtype=dtype)
    wrong = attention(q, [MISTAKES[mistake](segments[0]), segments[1]])
    with pytest.raises(AssertionError, match="rule"):
        assert_as_good_as_peer(wrong, exact.out, peer.out, magnitude(q, segments), 125 + PROBABILITY_ROUNDING[dtype])


@each_dtype
@pytest.mark.parametrize("capturing", [False, True])
def test_one_dominant_key_gives_its_value_exactly(dtype: torch.dtype, capturing: bool) -> None:
    q, segments = segments_of("plain", 2, (40, 17, 77), dtype)
    bias, out = torch.full((1, 1, 1, 77), -1e4), torch.zeros(R, H, 17, 77)
    bias[..., 5] = 1e4
    v = segments[0].pieces[0].v
    sharp = Segment(segments[0].pieces, bias=bias, capture=Capture(None, out) if capturing else None)
    assert torch.equal(attention(q, [sharp]), v[:, 5:6].expand(-1, 17, -1, -1).flatten(2))
    assert not capturing or (torch.equal(out.sum(-1), torch.ones(R, H, 17)) and out[..., 5].all())


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


LONG = 1200


def long_segments() -> dict[str, Segment]:
    k, v = (torch.randn(2, LONG, 1, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    plain = Segment((Piece(k, v),))
    columns = torch.tensor([[0, 5, 700]])
    window = torch.full((1, 3, LONG), 1.0 / LONG)
    rows = torch.tensor([1, 0])
    return {
        "plain": plain,
        "weights and rows": replace(plain, weight=torch.rand(2, LONG), k_rows=rows, v_rows=rows, q_rows=rows),
        "lengths": replace(plain, pieces=(Piece(k, v, torch.tensor([LONG, 1100])),)),
        "bias per key": replace(plain, bias=torch.randn(1, 1, 1, LONG)),
        "mass": replace(plain, mass=MassShift(columns, 0.5, window)),
        "capture": replace(plain, capture=Capture(columns, torch.zeros(2, LONG, 3))),
        "lse": replace(plain, lse=torch.zeros(2, 1, LONG)),
    }


@pytest.mark.parametrize("kind", long_segments())
def test_the_map_is_never_in_memory(kind: str) -> None:
    q, segment = torch.randn(2, LONG, 1, 8), long_segments()[kind]
    with Largest() as seen:
        got = attention(q, [segment])
    assert seen.elements < LONG * LONG / 2
    with Largest() as naive:
        wanted = naive_attention(q, [segment])
    assert naive.elements >= LONG * LONG, "the control builds the map"
    assert relative(got, wanted.out) < 1e-5


def test_pre_mix_of_short_contexts_does_not_build_the_map() -> None:
    q, k, v = torch.randn(2, 4096, 2, 8), torch.randn(2, 77, 2, 8), torch.randn(2, 77, 2, 8)
    with Largest() as seen:
        attention(q, [Segment((Piece(k, v),), v_mix=torch.randn(1, 77, 77), bias=torch.randn(1, 2, 1, 77))])
    assert seen.elements == q.numel() < 4096 * 77
