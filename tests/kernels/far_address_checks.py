"""Checks that addresses beyond 2^31 elements are 64-bit: in Triton's interpreter, on memory of which few pages are touched."""

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from resource import RUSAGE_SELF, getrusage
from unittest import mock

import torch
from torch import Tensor
from triton.runtime import interpreter

from bridle_kernels.attention import Capture, Piece, Segment, gpu
from bridle_kernels.geglu import triton as geglu
from bridle_kernels.group_norm import triton as group_norm
from bridle_kernels.residual_add import triton as residual_add
from bridle_kernels.triton_launch import launch

LIMIT = 2**31
NO_RESERVE = 0x4000
"""MAP_NORESERVE of Linux, which Python 3.11 does not name: the kernel promises no memory for pages that nobody touches."""
TOUCHED = 256 << 10
"""KiB that all checks together may touch, of tens of GiB: tens of pages, each of which may be one of 2 MiB."""


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    """Names, and functions that raise AssertionError; the last is that of memory."""
    before = getrusage(RUSAGE_SELF).ru_maxrss
    yield "far addresses: geglu", far_geglu
    yield "far addresses: residuals", far_residuals
    for pair in (False, True):
        yield f"far addresses: group norm, pair={pair}", lambda pair=pair: far_group_norm(pair)
    yield "far addresses: attention", far_attention
    yield "far addresses: memory", lambda: few_pages(before)


def few_pages(before: int) -> None:
    """before: KiB at most, before the checks."""
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < TOUCHED


class Far:
    """Zeros around an address. A signed 32-bit offset that wraps lands in them, so that it is seen and not a crash.

    start: one element at the address itself, which a kernel takes for the operand.
    """

    def __init__(self, dtype: torch.dtype, reach: int) -> None:
        """reach: elements from the address on."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        count = LIMIT + reach
        self._all = torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype)
        self.start = self._all.as_strided((1,), (1,), LIMIT)

    def place(self, tensor: Tensor, strides: tuple[int, ...] | None = None, at: int = 0) -> Tensor:
        """A copy of a tensor with its first element `at` elements behind the address."""
        found = self._all.as_strided(tensor.shape, tensor.stride() if strides is None else strides, LIMIT + at)
        found.copy_(tensor)
        return found


def far(tensor: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """The address of an operand, and a contiguous tensor as it lies `at` elements behind that."""
    memory = Far(tensor.dtype, at + tensor.numel())
    return memory.start, memory.place(tensor, at=at)


@contextmanager
def programs(*first: int) -> Iterator[None]:
    """Launches begin with this program; the interpreter does not copy the arguments' memory onto itself."""
    builder = interpreter.interpreter_builder
    set_size, set_place = builder.set_grid_dim, builder.set_grid_idx
    size = mock.patch.object(
        builder, "set_grid_dim", lambda *n: set_size(*(a + b for a, b in zip(first, n, strict=True)))
    )
    place = mock.patch.object(
        builder, "set_grid_idx", lambda *n: set_place(*(a + b for a, b in zip(first, n, strict=True)))
    )
    with size, place, mock.patch.object(interpreter.GridExecutor, "_restore_args_dev"):
        yield


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def far_geglu() -> None:
    channels, rows = 64, geglu.BLOCK // 64
    product = rand(1, rows, 2 * channels).half()
    a, _ = far(product, 2 * LIMIT)
    out, found = far(torch.zeros(rows, channels).half(), LIMIT)
    given = {"product": a, "out": out, "channels": channels, "count": LIMIT + rows * channels}
    with programs(LIMIT // geglu.BLOCK, 0, 0):
        launch(geglu._kernel, (1,), given, {"BLOCK": geglu.BLOCK})
    assert torch.equal(found, geglu.gated(product)) and found.any()


def far_residuals() -> None:
    """The last lines of one high image, of a residual and of its mask."""
    channels, width = 16, 4
    lines = residual_add.BLOCK // (channels * width)
    x, value = (rand(seed, 1, lines, width, channels).half() for seed in (2, 3))
    mask = rand(4, 1, 1, lines, width)
    start, found = far(x, LIMIT)
    values, _ = far(value, LIMIT)
    step = channels * width
    masks = Far(torch.float32, LIMIT + lines * step)
    masks.place(mask[0, 0], (step, channels), LIMIT)
    given = {
        **{"x": start, "out": start, "values": (values,), "scales": (torch.tensor([0.5]),), "masks": (masks.start,)},
        **{"sources": torch.zeros(1, 1, dtype=torch.int32), "scale_strides": (0,), "masked": 1, "rows": 1},
        **{"value_strides": (0, 1, step, channels), "mask_strides": (0, step, channels)},
        **{"height": LIMIT // step + lines, "width": width, "channels": channels, "out_stride": channels},
    }
    with programs(LIMIT // residual_add.BLOCK, 0, 0):
        launch(residual_add._kernel, (1, 1), given, {"TERMS": 1, "BLOCK": residual_add.BLOCK})
    wanted = x.float() + value.float() * 0.5 * mask[0, 0, :, :, None]
    assert torch.equal(found, wanted.half())


def far_group_norm(pair: bool) -> None:
    """One image far down a batch."""
    pixels, channels, groups = 32, 32, 4
    row = LIMIT // (pixels * channels)
    images = tuple(rand(seed, 1, pixels, channels).half() for seed in ((5, 6) if pair else (5,)))
    total = channels * len(images)
    weight, bias, scale = (rand(seed, n, total).half() for seed, n in ((7, 1), (8, 1), (9, 1)))
    (a, _), (b, _) = far(images[0], LIMIT), far(images[-1], LIMIT)
    partial, _ = far(torch.zeros(groups * 2), row * groups * 2)
    known, _ = far(torch.zeros(groups * 2), row * groups * 2)
    scales, _ = far(scale, row * total)
    out, found = far(torch.zeros(1, pixels, total).half(), row * pixels * total)
    sizes = {"a": a, "b": b, "first": channels, "second": channels, "pixels": pixels, "width": total // groups}
    tile = {"SLICE": group_norm.SLICE, "PIXELS": group_norm.PIXELS, "BLOCK": total // groups, "PAIR": pair}
    with programs(0, 0, row):
        launch(group_norm._slices, (1, groups, 1), {**sizes, "partial": partial}, tile)
    merged = {
        "partial": partial,
        "statistics": known,
        "slices": 1,
        "pixels": pixels,
        "width": total // groups,
        "eps": 1e-5,
    }
    with programs(row * groups, 0, 0):
        launch(group_norm._merge, (groups,), merged, {"SLICE": group_norm.SLICE})
    given = {**sizes, "out": out, "statistics": known, "weight": weight, "bias": bias, "scale": scales, "shift": scales}
    flags = {"PAIR": pair, "SCALE": True, "SHIFT": True, "SILU": True}
    tile = {"PIXELS": group_norm.PIXELS, "CHANNELS": group_norm.CHANNELS}
    with programs(0, 0, row):
        launch(group_norm._normalise, (1, 1, 1), {**given, "groups": groups}, {**tile, **flags})
    wanted = group_norm.group_norm(images, weight[0], bias[0], groups, 1e-5, silu=True, scale=scale, shift=scale)
    assert torch.equal(found, wanted) and found.any()


def far_attention() -> None:
    """Rows of Q, keys, values, a bias and captured columns that lie far apart; offsets are counted in units of 8."""
    q, k, v, bias = (
        rand(10, 2, 5, 1, 8).half(),
        rand(11, 2, 3, 1, 8).half(),
        rand(12, 2, 3, 1, 8).half(),
        rand(13, 2, 1, 5, 3),
    )
    columns, far_step, row_step = torch.tensor([[0, 2]]), LIMIT // 2 + 8, LIMIT + 16

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor) -> Tensor:
        return gpu.attention(q, [Segment((Piece(k, v),), bias=bias, capture=Capture(columns, out))])

    maps = torch.zeros(2, 5, 2)
    wanted = attend(q, k, v, bias, maps)
    memory = Far(torch.float16, 2 * LIMIT)
    apart = memory.place(q, (row_step, 8, 8, 1), 1024)
    keys = memory.place(k, (16, far_step, 8, 1), 2048)
    values = memory.place(v, (16, far_step, 8, 1), 4096)
    scores = Far(torch.float32, 2 * LIMIT)
    biases = scores.place(bias, (8, 8, LIMIT // 4 + 32, 1))
    captured = scores.place(torch.zeros(2, 5, 2), (2, LIMIT // 4 + 32, 1), 1024)
    with programs(0, 0, 0):
        assert torch.equal(attend(apart, keys, values, biases, captured), wanted)
    assert torch.equal(captured, maps) and maps.any()
