"""T1 and its control T6: a row of an op has the same bits in every batch and at every place."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from split_products import SplitOps
from torch import Tensor

from bridle_kernels import _core, available_isas
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.executor import Immediate
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.ops import Ops
from bridle_kernels.packed_weights import PackedWeights

COUNTS = (2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33)
ALL = bool(os.environ.get("BRIDLE_TEST_LONG"))
Op = Callable[[Ops, Tensor], Tensor]

IMAGES = [(64, 8, 8), (320, 8, 8), (128, 5, 7)] + [(640, 16, 16), (1280, 8, 8), (320, 32, 32)] * ALL
"""Channels, height, width: of Stable Diffusion, and one that no tile fits."""


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ops_of(channels: int, dtype: torch.dtype) -> dict[str, Op]:
    """Ops on images [R, C, h, w], and on their tokens, with weights of their own."""

    matrix, gated = rand(1, channels, channels).to(dtype) / 16, rand(2, 4 * channels, channels).to(dtype) / 16
    kernel, vector = (rand(3, channels, channels, 3, 3) / 48).to(dtype), rand(4, channels).to(dtype)
    wide = rand(5, 4 * channels).to(dtype)

    def attend(ops: Ops, x: Tensor) -> Tensor:
        heads = tokens(x).unflatten(-1, (4, -1))
        return ops.attention(heads, [Segment((Piece(heads, heads),))])

    return {
        "linear": lambda ops, x: ops.linear(tokens(x), matrix, vector, activation="silu"),
        "geglu": lambda ops, x: ops.geglu(tokens(x), gated, wide),
        "conv2d": lambda ops, x: ops.conv2d(x, kernel, vector),
        "strided conv2d": lambda ops, x: ops.conv2d(x, kernel, vector, stride=2),
        "upsampled conv2d": lambda ops, x: ops.conv2d(x, kernel, vector, upsample=(2 * x.shape[2], 2 * x.shape[3])),
        "attention": attend,
        "group_norm": lambda ops, x: ops.group_norm(x, vector, vector, 32, 1e-5, activation="silu"),
        "layer_norm": lambda ops, x: ops.layer_norm(tokens(x), vector, vector, 1e-5),
    }


def tokens(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2).contiguous()


def changed_rows(ops: Ops, op: Op, image: tuple[int, int, int], dtype: torch.dtype) -> list[tuple[int, int]]:
    """Row counts and places at which a row is not what it is alone."""
    rows = rand(sum(image), max(COUNTS), *image).to(dtype)
    found = []
    for count in COUNTS:
        together = op(ops, rows[:count].clone())
        for place in (0, count // 2, count - 1):
            alone = op(ops, rows[place : place + 1].clone())
            if not torch.equal(together[place : place + 1], alone):
                found.append((count, place))
    return found


def cases() -> list[tuple[str, torch.dtype, tuple[int, int, int]]]:
    """Variants with products of their own; one element at a time is for the smaller images."""
    narrow = ("scalar", "avx512_bf16", "amx_bf16")
    kinds = [(isa, torch.float32) for isa in available_isas()]
    kinds += [(isa, torch.bfloat16) for isa in available_isas() if isa in narrow]
    return [(*kind, image) for kind in kinds for image in IMAGES if kind[0] != "scalar" or image[0] <= 128]


@pytest.mark.parametrize(("isa", "dtype", "image"), cases(), ids=str)
def test_t1_rows_do_not_depend_on_their_batch(
    isa: str, dtype: torch.dtype, image: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDLE_FORCE_ISA", isa)
    native = NativeOps(Immediate(_core.ThreadPool(2)), PackedWeights())
    for name, op in ops_of(image[0], dtype).items():
        assert changed_rows(native, op, image, dtype) == [], name


def test_t6_sums_that_depend_on_the_batch_are_noticed() -> None:
    """T1's check on products whose order is chosen by the number of rows."""
    assert changed_rows(SplitOps(), ops_of(64, torch.float32)["linear"], (64, 8, 8), torch.float32)


@contextmanager
def flushing(on: bool) -> Iterator[None]:
    """PyTorch's switch for the calling thread, which is off otherwise."""
    assert torch.set_flush_denormal(on)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def flushes() -> bool:
    """Whether the calling thread has subnormal numbers as zeros; the comparison is of bits, which never do."""
    return bool((torch.tensor([1e-39]) * 1.0).view(torch.int32) == 0)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="no switch for subnormal numbers here")
@pytest.mark.parametrize("isa", available_isas())
def test_subnormal_sums_do_not_depend_on_the_callers_setting(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the caller's thread has its setting: flushed to zero there alone, bits would depend on who computes them."""
    monkeypatch.setenv("BRIDLE_FORCE_ISA", isa)
    x, matrix = 1e-20 * rand(1, 400, 64), 1e-20 * rand(2, 128, 64)

    def bits(threads: int, flush: bool) -> Tensor:
        native = NativeOps(Immediate(_core.ThreadPool(threads)), PackedWeights())
        with flushing(flush):
            result = native.linear(x, matrix)
            assert flushes() is flush
        return result.view(torch.int32)

    wanted = bits(1, False)
    assert float(wanted.view(torch.float32).abs().median()) < 1.1e-38 and bool((wanted != 0).all())
    for threads in (1, 2, 3):
        for flush in (False, True):
            assert torch.equal(bits(threads, flush), wanted), (threads, flush)
