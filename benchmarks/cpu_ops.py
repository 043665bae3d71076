"""The ops of the C++ core beside PyTorch's, interleaved in one process: medians, ratios, achieved rates.

    python benchmarks/cpu_ops.py --out benchmarks/results/cpu_ops.json

Shapes are those of SD1.5 at 512x512 with two rows. Every case is first held against PyTorch's result.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from bridle_kernels import _core, active_isa
from bridle_kernels.attention import Piece, Segment, native

ROWS = 2
ROUNDS = 7
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative distance that two correct results may have."""


@dataclass(frozen=True)
class Case:
    """ours, theirs: the same op, [.., ..] out. work: floating-point operations."""

    op: str
    shape: str
    dtype: torch.dtype
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    work: float


def attention_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Self- and cross-attention of every level."""
    for side, dim in ((64, 40), (32, 80), (16, 160), (8, 160)):
        for name, keys in (("self", side * side), ("cross", 77)):
            q, k, v = (torch.randn(ROWS, n, 8, dim).to(dtype) for n in (side * side, keys, keys))
            segment = Segment((Piece(k, v),))
            yield Case(
                f"{name}-attention",
                f"{ROWS}x{side * side}x8x{dim}, {keys} keys",
                dtype,
                lambda q=q, segment=segment: native.attention(q, [segment], pool=pool),  # type: ignore[misc]
                lambda q=q, k=k, v=v: (
                    F.scaled_dot_product_attention(  # type: ignore[misc]
                        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
                    )
                    .transpose(1, 2)
                    .flatten(2)
                ),
                4.0 * ROWS * 8 * side * side * keys * dim,
            )


def linear_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Projections and both layers of the feed-forward network of every level."""
    for side, width in ((64, 320), (32, 640), (16, 1280)):
        for inputs, outputs in ((width, width), (width, 8 * width), (4 * width, width)):
            m = ROWS * side * side
            x, weight = torch.randn(m, inputs).to(dtype), (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
            packed = _core.PackedWeights(weight.float(), [inputs], _name(dtype))
            out = torch.empty(m, outputs, dtype=dtype)

            def ours(x: Tensor = x, packed: Any = packed, out: Tensor = out) -> Tensor:
                _core.linear(pool, packed, x, out)
                return out

            yield Case(
                "linear",
                f"{m}x{inputs} -> {outputs}",
                dtype,
                ours,
                lambda x=x, weight=weight: F.linear(x, weight),  # type: ignore[misc]
                2.0 * m * inputs * outputs,
            )


def convolution_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """3x3 convolutions of every level."""
    for side, width in ((64, 320), (32, 640), (16, 1280), (8, 1280)):
        x = torch.randn(ROWS, width, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = (torch.randn(width, width, 3, 3) / (9 * width) ** 0.5).to(dtype)
        last = weight.contiguous(memory_format=torch.channels_last)
        flat = weight.float().permute(0, 2, 3, 1).reshape(width, -1).contiguous()
        packed = _core.PackedWeights(flat, [width] * 9, _name(dtype))
        out = torch.empty(ROWS * side * side, width, dtype=dtype)

        def ours(x: Tensor = x, packed: Any = packed, out: Tensor = out) -> Tensor:
            _core.conv2d(pool, packed, [x.permute(0, 2, 3, 1)], out, kernel=[3, 3])
            return out.view(x.shape[0], x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)

        yield Case(
            "conv2d 3x3",
            f"{ROWS}x{side}x{side}x{width}",
            dtype,
            ours,
            lambda x=x, last=last: F.conv2d(x, last, padding=1),  # type: ignore[misc]
            2.0 * ROWS * side * side * 9 * width * width,
        )


REGISTRY = (attention_cases, linear_cases, convolution_cases)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(case: Case) -> dict[str, Any]:
    """Median seconds of both, taken in turns. Raises RuntimeError where the results differ."""
    distance = float((case.ours().double() - case.theirs().double()).norm() / case.theirs().double().norm())
    if not distance <= CLOSE[case.dtype]:
        raise RuntimeError(f"{case.op} {case.shape} {case.dtype}: relative distance {distance:.2g}")
    seconds: tuple[list[float], list[float]] = ([], [])
    repeats = max(1, int(0.02 / _seconds(case.theirs, 1)))
    for _ in range(ROUNDS):
        for run, found in zip((case.ours, case.theirs), seconds, strict=True):
            found.append(_seconds(run, repeats))
    ours, theirs = (statistics.median(found) for found in seconds)
    return {
        "op": case.op,
        "shape": case.shape,
        "dtype": _name(case.dtype),
        "ms": round(1e3 * ours, 4),
        "torch_ms": round(1e3 * theirs, 4),
        "ratio": round(theirs / ours, 3),
        "gflops": round(case.work / ours / 1e9, 1),
        "torch_gflops": round(case.work / theirs / 1e9, 1),
    }


def _seconds(run: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cpu_ops.json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--op", help="only ops whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    pool = _core.ThreadPool(arguments.threads)
    cases = [case for dtype in (torch.float32, torch.bfloat16) for make in REGISTRY for case in make(pool, dtype)]
    chosen = [case for case in cases if arguments.op is None or arguments.op in case.op]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    with torch.no_grad():
        rows = [measure(case) for case in tqdm(chosen, unit="case")]
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "git": commit.stdout.strip(),
        "cpu": platform.processor() or platform.machine(),
        "isa": active_isa(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "cases": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    for row in rows:
        print(f"{row['op']:<16}{row['shape']:<28}{row['dtype']:<9} {row['ms']:>9.3f} ms, {row['ratio']:.2f} x torch")


if __name__ == "__main__":
    main()
