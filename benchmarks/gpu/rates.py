"""Part "rates": what the device reaches, and which fraction of it each kernel does.

A kernel is timed inside a graph of many launches, as a step runs it; where it cannot be captured by launches from Python.
"attention" is what a step calls, which is PyTorch's kernel where nothing more is asked for; "attention kernel" is ours.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bridle_kernels.attention import Piece, Segment
from gpu import own_kernels
from gpu.case import Case
from gpu.clock import CudaGraphs, Graphs, flush, graph_ms, median_ms
from gpu.part import Context

COPY_BYTES = {"full": 4 * 2**30, "tiny": 2**20}
PRODUCT_SIDE = {"full": 8192, "tiny": 64}
REPEATS = 50
"""Runs on the same inputs that must agree to the bit: a race shows as a difference."""


@torch.no_grad()
def run(context: Context) -> Iterator[dict[str, Any]]:
    """The ceilings first, then one record per kernel."""
    from bridle_kernels.ops import ReferenceOps
    from bridle_kernels.triton_ops import TritonOps

    peaks = ceilings(context)
    yield {"name": "ceilings", **peaks, "problem": None}
    ops = TritonOps() if context.device == "cuda" else ReferenceOps()
    for case in cases(ops, context):
        if context.left < 2.0:
            yield {"name": case.name, "problem": "not measured: no time was left"}
            continue
        yield measured(case, peaks, context.device)


def ceilings(context: Context) -> dict[str, float]:
    """Bytes per second of a large copy, read and written, and float16 operations per second of a large product."""
    count, side = COPY_BYTES[context.size] // 2, PRODUCT_SIDE[context.size]
    source = torch.randn(count // 4, device=context.device)
    target = torch.empty_like(source)
    copy = median_ms(lambda: target.copy_(source), context.device, 5)
    a, b = (torch.randn(side, side, device=context.device).half() for _ in range(2))
    product = median_ms(lambda: a @ b, context.device, 5)
    return {"bytes_per_s": 2 * source.nbytes / copy * 1e3, "flops_per_s": 2 * side**3 / product * 1e3}


def measured(case: Case, peaks: dict[str, float], device: str) -> dict[str, Any]:
    """Milliseconds, fractions of both ceilings and of the time that the larger one allows; repeats for equal bits."""
    first = case.run().clone()
    differing = sum(not torch.equal(first, case.run()) for _ in range(REPEATS))
    finite = bool(torch.isfinite(first).all())
    times = timed(case.run, device)
    ms = times["ms"]
    moving, computing = case.bytes / ms * 1e3 / peaks["bytes_per_s"], case.flops / ms * 1e3 / peaks["flops_per_s"]
    problem = f"{differing} of {REPEATS} repeats differ" if differing else None if finite else "not finite"
    return {
        "name": case.name,
        **{name: round(value, 5) if isinstance(value, float) else value for name, value in times.items()},
        "copy_fraction": round(moving, 4),
        "matrix_fraction": round(computing, 4),
        "of_floor": round(max(moving, computing), 4),
        "problem": problem,
    }


def timed(run: Callable[[], object], device: str, graphs: Graphs | None = None) -> dict[str, Any]:
    """ms: of a launch with a cold cache. warm_ms: with a warm one. by: "graph", or "launches" with what starting them takes.

    graphs: of the device, if None.
    """
    if device != "cuda" and graphs is None:
        return {"ms": median_ms(run, device), "by": "launches"}
    try:
        cold, warm = graph_ms(run, flush(device), graphs or CudaGraphs())
    except RuntimeError as why:
        return {"ms": median_ms(run, device), "by": "launches", "not_captured": str(why)[:200]}
    return {"ms": cold, "warm_ms": warm, "by": "graph"}


def cases(ops: Any, context: Context) -> Iterator[Case]:
    """The shapes of SD 1.5 at 512x512 and SDXL at 1024x1024, a pair of rows; small ones for tests."""
    full = context.size == "full"
    make = _Make(ops, context.device)
    attentions = [(2, 4096, 4096, 8, 40), (2, 4096, 77, 8, 40), (2, 1024, 1024, 8, 80), (2, 256, 256, 8, 160),
                  (2, 4096, 4096, 10, 64), (2, 1024, 1024, 20, 64), (2, 1024, 77, 20, 64)]  # fmt: skip
    images = [(2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 320, 128, 128), (2, 640, 64, 64)]
    tokens = [(2, 4096, 320), (2, 1024, 640), (2, 4096, 640), (2, 1024, 1280)]
    for size in attentions if full else [(1, 9, 7, 2, 8)]:
        yield make.attention(size)
    yield from own_kernels.cases(full, context.device)
    for size in images if full else [(1, 32, 5, 7)]:
        yield from (make.group_norm(size), make.conv(size), make.residual(size), make.upsample(size))
    for size in tokens if full else [(1, 9, 32)]:
        yield from (make.layer_norm(size), make.geglu(size), make.linear(size))


class _Make:
    """Cases over random float16 tensors; images have their channels last."""

    def __init__(self, ops: Any, device: str) -> None:
        self._ops = ops
        self._device = device
        self._generator = torch.Generator(device).manual_seed(0)

    def _randn(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self._generator, device=self._device) * scale).half()

    def _image(self, size: tuple[int, ...]) -> Tensor:
        return self._randn(*size).contiguous(memory_format=torch.channels_last)

    def attention(self, size: tuple[int, int, int, int, int]) -> Case:
        rows, queries, keys, heads, dim = size
        q, k, v = self._randn(rows, queries, heads, dim), *(self._randn(rows, keys, heads, dim) for _ in range(2))
        segment = Segment((Piece(k, v),))
        moved = 2 * q.nbytes + k.nbytes + v.nbytes
        flops = 4 * rows * heads * queries * keys * dim
        return Case(f"attention {size}", lambda: self._ops.attention(q, (segment,)), moved, flops)

    def group_norm(self, size: tuple[int, ...]) -> Case:
        x, weight, bias = self._image(size), self._randn(size[1]), self._randn(size[1])

        def compute() -> Tensor:
            return self._ops.group_norm(x, weight, bias, 32, 1e-5, activation="silu")

        return Case(f"group_norm {size}", compute, 2 * x.nbytes, 0)

    def conv(self, size: tuple[int, ...]) -> Case:
        rows, width, high, wide = size
        x, bias = self._image(size), self._randn(width)
        weight = self._randn(width, width, 3, 3, scale=(9 * width) ** -0.5).contiguous(
            memory_format=torch.channels_last
        )
        flops = 2 * rows * high * wide * width * width * 9
        return Case(f"conv2d {size}", lambda: self._ops.conv2d(x, weight, bias), 2 * x.nbytes + weight.nbytes, flops)

    def residual(self, size: tuple[int, ...]) -> Case:
        from bridle.rows import Residual

        x, scale = self._image(size), torch.ones(size[0], device=self._device)
        terms = (Residual(self._image(size), scale), Residual(self._image(size), scale))

        def compute() -> Tensor:
            return self._ops.residual_add(x.clone(), terms)  # written over

        return Case(f"copy, residual_add {size}", compute, 6 * x.nbytes, 0)

    def upsample(self, size: tuple[int, ...]) -> Case:
        x = self._image(size)
        one = torch.eye(size[1], device=self._device).half()[:, :, None, None]
        bigger = (2 * size[2], 2 * size[3])
        flops = 2 * size[0] * 4 * size[2] * size[3] * size[1] ** 2

        def compute() -> Tensor:
            return self._ops.conv2d(x, one, padding=0, upsample=bigger)

        return Case(f"upsample, 1x1 {size}", compute, 9 * x.nbytes, flops)

    def layer_norm(self, size: tuple[int, ...]) -> Case:
        x, weight, bias = self._randn(*size), self._randn(size[-1]), self._randn(size[-1])
        return Case(f"layer_norm {size}", lambda: self._ops.layer_norm(x, weight, bias, 1e-5), 2 * x.nbytes, 0)

    def geglu(self, size: tuple[int, ...]) -> Case:
        rows, count, width = size
        x, bias = self._randn(*size), self._randn(8 * width)
        weight = self._randn(8 * width, width, scale=width**-0.5)
        flops = 2 * rows * count * width * 8 * width
        moved = 5 * x.nbytes + weight.nbytes
        return Case(f"geglu {size}", lambda: self._ops.geglu(x, weight, bias), moved, flops)

    def linear(self, size: tuple[int, ...]) -> Case:
        rows, count, width = size
        x, bias, weight = self._randn(*size), self._randn(width), self._randn(width, width, scale=width**-0.5)
        flops = 2 * rows * count * width * width
        return Case(f"linear {size}", lambda: self._ops.linear(x, weight, bias), 2 * x.nbytes + weight.nbytes, flops)
