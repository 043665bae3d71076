"""The networks' vocabulary over the C++ core: every method against the reference, and what falls back to it."""

from collections.abc import Callable

import pytest
import torch
from residual_term import Term
from torch import Tensor

from bridle_kernels import _core, available_isas
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.executor import Immediate
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.ops import Ops, ReferenceOps
from bridle_kernels.packed_weights import PackedWeights

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
Call = Callable[[Ops, Callable[..., Tensor]], Tensor]


def native_ops(threads: int) -> NativeOps:
    return NativeOps(Immediate(_core.ThreadPool(threads)), PackedWeights())


def attention(ops: Ops, rand: Callable[..., Tensor], **named: object) -> Tensor:
    q, k, v = ops.project_heads(rand(2, 9, 12), [rand(16, 12) for _ in range(3)], 2, [rand(16) for _ in range(3)])
    return ops.attention(q, [Segment((Piece(k, v),), weight=0.7)], **named)  # type: ignore[arg-type]


IDS = torch.tensor([[3, 19, 0, 4, 4, 19, 1], [5, 6, 7, 8, 9, 10, 18], [19, 0, 0, 0, 0, 0, 0]])
"""Token ids of the vocabulary below; 19 ends a text."""

CALLS: dict[str, Call] = {
    "conv2d": lambda ops, r: ops.conv2d(r(2, 6, 9, 7), r(10, 6, 3, 3), r(10)),
    "conv2d, a pair, shift, residual": lambda ops, r: ops.conv2d(
        (r(2, 6, 9, 7), r(2, 4, 9, 7)), r(12, 10, 3, 3), shift=r(2, 12), residual=r(2, 12, 9, 7), activation="silu"
    ),
    "conv2d, strided, one-sided": lambda ops, r: ops.conv2d(
        r(2, 6, 9, 7), r(10, 6, 3, 3), r(10), stride=2, padding=(0, 1, 0, 1), activation="relu"
    ),
    "conv2d, 1x1": lambda ops, r: ops.conv2d(r(2, 6, 9, 7), r(10, 6, 1, 1), padding=0, residual=r(2, 10, 9, 7)),
    "conv2d, odd width": lambda ops, r: ops.conv2d(r(1, 3, 8, 8), r(4, 3, 3, 3), r(4)),
    "conv2d, an odd pair": lambda ops, r: ops.conv2d((r(2, 4, 7, 5), r(2, 5, 7, 5)), r(6, 9, 3, 3), r(6), stride=2),
    "conv2d, two odd widths": lambda ops, r: ops.conv2d((r(2, 3, 7, 5), r(2, 1, 7, 5)), r(5, 4, 1, 1), padding=0),
    "conv2d, tanh": lambda ops, r: ops.conv2d(r(1, 4, 8, 8), r(4, 4, 3, 3), activation="tanh"),
    "conv2d, broadcast residual": lambda ops, r: ops.conv2d(
        r(3, 4, 8, 6), r(6, 4, 2, 2), stride=2, padding=0, residual=r(6, 12).reshape(1, 6, 4, 3)
    ),
    "linear, odd width": lambda ops, r: ops.linear(r(2, 9, 13), r(10, 13), r(10), residual=r(2, 1, 10)),
    "project_heads, odd width": lambda ops, r: ops.project_heads(r(2, 9, 13), [r(6, 13), r(6, 13)], 2)[1],
    "geglu, odd width": lambda ops, r: ops.geglu(r(2, 9, 11), r(14, 11), r(14)),
    "layer_norm of a column": lambda ops, r: ops.layer_norm(ops.columns(r(3, 9, 12), 0, 1), r(12), r(12), 1e-5),
    "linear": lambda ops, r: ops.linear(r(2, 9, 12), r(10, 12), r(10), residual=r(2, 9, 10), activation="silu"),
    "linear, gelu": lambda ops, r: ops.linear(r(2, 9, 12), r(10, 12), r(10), activation="gelu"),
    "linear of an image's tokens": lambda ops, r: ops.linear(ops.tokens(r(2, 12, 4, 5)), r(10, 12, 1, 1), r(10)),
    "linear, broadcast residual": lambda ops, r: ops.linear(r(5, 12), r(10, 12), residual=r(1, 10)),
    "linear, quick_gelu": lambda ops, r: ops.linear(40 * r(2, 9, 12), r(10, 12), activation="quick_gelu"),
    "residual_add, several": lambda ops, r: ops.residual_add(
        r(3, 12, 5, 4),
        [
            Term(r(2, 12, 5, 4), r(2).float(), (2, 0), r(2, 1, 5, 4).float()),
            Term(r(1, 12, 1, 1), r(1).float()),
            Term(r(3, 12, 1, 1), r(3).float(), None, r(1, 1, 5, 4).float()),
        ],
    ),
    "conv2d, upsampled": lambda ops, r: ops.conv2d(r(2, 12, 5, 4), r(6, 12, 3, 3), upsample=(10, 8)),
    "conv2d, an upsampled pair, shift, residual": lambda ops, r: ops.conv2d(
        (r(2, 7, 5, 3), r(2, 4, 5, 3)),
        r(12, 11, 3, 3),
        r(12),
        upsample=(10, 6),
        shift=r(2, 12),
        residual=r(2, 12, 10, 6),
        activation="silu",
    ),
    "conv2d, upsampled to odd sides": lambda ops, r: ops.conv2d(r(2, 12, 7, 3), r(6, 12, 3, 3), upsample=(13, 5)),
    "image of tokens": lambda ops, r: ops.image(r(2, 20, 12), (5, 4)),
    "average_pool": lambda ops, r: ops.average_pool(r(2, 70, 8, 6)),
    "average_pool, odd": lambda ops, r: ops.average_pool(r(2, 3, 7, 5)),
    "spatial_mean": lambda ops, r: ops.spatial_mean(r(2, 70, 9, 7)),
    "resize_mask": lambda ops, r: ops.resize_mask(r(3, 1, 17, 9), (5, 4)),
    "pixel_unshuffle": lambda ops, r: ops.pixel_unshuffle(r(2, 3, 16, 24), 8),
    "activation, tanh": lambda ops, r: ops.activation(3 * r(2, 4, 5, 3), "tanh"),
    "activation of tokens": lambda ops, r: ops.activation(r(5, 2, 7).transpose(0, 1), "silu"),
    "scale_shift": lambda ops, r: ops.scale_shift(r(2, 3, 5, 4), 0.5, 0.25),
    "concat of images": lambda ops, r: ops.concat([r(2, 3, 5, 4), r(2, 4, 5, 4), r(2, 1, 5, 4)]),
    "concat of tokens": lambda ops, r: ops.concat([r(2, 3, 5), r(2, 4, 5)]),
    "concat of columns": lambda ops, r: ops.concat([ops.columns(r(2, 9), 3, 5), r(2, 9)]),
    "rows": lambda ops, r: ops.rows(r(3, 4, 5, 6), (2, 0, 2)),
    "rows of one": lambda ops, r: ops.rows(r(1, 4, 5), (0, 0, 0)),
    "embedding": lambda ops, r: ops.embedding(IDS, r(20, 6), r(8, 6)),
    "end_token": lambda ops, r: ops.end_token(r(3, 7, 6), IDS, 19),
    "end_token, the largest": lambda ops, r: ops.end_token(r(3, 7, 6), IDS, None),
    "geglu": lambda ops, r: ops.geglu(r(2, 9, 12), r(20, 12), r(20)),
    "group_norm": lambda ops, r: ops.group_norm(r(2, 12, 5, 4), r(12), r(12), 4, 1e-5, activation="silu"),
    "group_norm, a pair, affine": lambda ops, r: ops.group_norm(
        (r(2, 8, 5, 4), r(2, 4, 5, 4)), r(12), r(12), 3, 1e-5, affine=(r(2, 12), r(2, 12))
    ),
    "group_norm, relu": lambda ops, r: ops.group_norm(r(2, 12, 5, 4), r(12), r(12), 4, 1e-5, activation="relu"),
    "layer_norm": lambda ops, r: ops.layer_norm(r(2, 9, 12), r(12), r(12), 1e-5),
    "attention": attention,
    "attention, causal": lambda ops, r: attention(ops, r, causal=True),
    "attention, float32 scores": lambda ops, r: attention(ops, r, float32_scores=True),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_op_is_the_reference(dtype: torch.dtype, name: str) -> None:
    def run(ops: Ops, kind: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return CALLS[name](ops, lambda *shape: torch.randn(shape, generator=generator).to(dtype).to(kind))

    ours, exact = run(native_ops(2), dtype), run(ReferenceOps(), torch.float64)
    assert ours.dtype == dtype and ours.shape == exact.shape
    assert float((ours.double() - exact).norm() / exact.norm()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 19, 64, 517])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residuals_are_rounded_once(dtype: torch.dtype, channels: int, count: int) -> None:
    """By every variant, to the bits of float32 sums in the order of the terms. A row that no term names keeps its own."""
    generator = torch.Generator().manual_seed(channels)
    x, mask = (torch.randn(3, 67, n, generator=generator) for n in (channels, 1))
    values = torch.randn(count, 2, 67, channels, generator=generator).to(dtype)
    exact = x.to(dtype).float()
    for k in range(count):
        exact[[2, 0]] += (0.3 + k) * mask[[2, 0]] * values[k].float()
    terms = [
        {"values": v, "rows": [2, 0], "scale": [0.3 + k] * 2, "mask": mask[[2, 0], :, 0]} for k, v in enumerate(values)
    ]
    for isa in available_isas():
        ours = x.to(dtype)
        _core.residual_add(_core.ThreadPool(2), ours, terms, isa=isa)
        assert torch.equal(ours, exact.to(dtype)), isa


def test_images_stay_channels_last() -> None:
    """So that their tokens are a view."""
    ops = native_ops(1)
    image = ops.conv2d(torch.randn(2, 4, 6, 6), torch.randn(8, 4, 3, 3))
    normed = ops.group_norm(image, torch.ones(8), torch.zeros(8), 2, 1e-5)
    for made in (image, normed):
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert ops.tokens(made).is_contiguous()


def test_other_dtypes_are_the_reference() -> None:
    ops, x, weight = native_ops(1), torch.randn(2, 4, 6, 6).double(), torch.randn(8, 4, 3, 3).double()
    assert torch.equal(ops.conv2d(x, weight), ReferenceOps.conv2d(x, weight))
    half = [torch.randn(2, 5, 8).half(), torch.randn(6, 8).half()]
    assert torch.equal(ops.linear(*half), ReferenceOps.linear(*half))


def test_packed_weights_live_as_long_as_the_weights() -> None:
    weights = PackedWeights()
    ops, x = NativeOps(Immediate(_core.ThreadPool(1)), weights), torch.randn(3, 8)
    kept, dropped = torch.randn(6, 8), torch.randn(6, 8, dtype=torch.float32)
    bias = torch.randn(6).bfloat16()
    first = ops.linear(x, kept)
    ops.linear(x.bfloat16(), kept.bfloat16(), bias)
    ops.linear(x, dropped)
    del dropped, bias
    assert len(weights) == 1 and not weights._floats
    assert torch.equal(ops.linear(x, kept), first) and len(weights) == 1


def test_results_can_be_added_to_any_tensor() -> None:
    q, k, v = (torch.randn(2, n, 3, 8) for n in (5, 7, 7))
    segments, out = [Segment((Piece(k, v),))], torch.ones(2, 24, 5).transpose(1, 2)
    given = native_ops(1).attention(q, segments, out=out)
    torch.testing.assert_close(given, 1 + ReferenceOps().attention(q, segments))
    assert given is out


def test_threads_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(2, 16, 24, 20, generator=generator), torch.randn(32, 16, 3, 3, generator=generator)
    assert torch.equal(native_ops(1).conv2d(x, weight), native_ops(5).conv2d(x, weight))
