"""The CPU backend from the start of a process to its first image, without and with packed weights on disk.

    python benchmarks/cpu_start.py --out benchmarks/results/cpu_start.json

Writes random SD1.5 weights to a temporary folder, then starts processes: with the cache off, with an empty one, and with
a full one. Each loads the model and makes the same image of 512x512 twice, of few guided steps. `over_load_and_image` is
the first image since the start of the process over loading and the second image. Memory is the peak resident size of the
first image, with the pages of mapped files that were touched. `pack_seconds` is a plan of the U-Net whose weights are
packed for it, `record_seconds` one whose weights are.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import bridle
from bridle.backends import programs
from bridle.backends.cpu import CpuBackend
from bridle.new_model import write_new_model
from bridle_kernels import active_isa
from bridle_kernels.packed_weights import PackedWeights
from cpu.machine import machine

STARTS = ("off", "cold", "warm")


def child(folder: str, dtype: str, steps: int, side: int, begin: float) -> None:
    """One start; prints one JSON line. begin: when the process was started, in seconds of the epoch."""
    engine = bridle.load(folder, backend="cpu", dtype=dtype)
    loaded = time.time() - begin
    request = bridle.Request(
        "a cat", num_inference_steps=steps, guidance_scale=7.5, width=side, height=side, output_type="np"
    )
    engine.sample(request, progress=False)
    first = time.time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    second = _seconds(lambda: engine.sample(request, progress=False))
    row = {
        "load_seconds": loaded,
        "first_image_seconds": first,
        "second_image_seconds": second,
        "over_load_and_image": first / (loaded + second),
        **_recording(engine.backend, side // 8),
        "peak_mib": peak,
    }
    print(json.dumps({name: round(value, 3) for name, value in row.items()}))


def _recording(backend: object, side: int) -> dict[str, float]:
    """Seconds of the U-Net's plan, without packed weights and with them; the second is one of another size."""
    assert isinstance(backend, CpuBackend)
    packed = PackedWeights(backend._pool)
    seconds = [
        _seconds(
            lambda height=height: programs.record_unet(  # type: ignore[misc]
                backend.model.unet, packed, backend.dtype, (2, 4, height, side), None, None
            )
        )
        for height in (side, side + 8)
    ]
    return {"pack_seconds": seconds[0], "record_seconds": seconds[1]}


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def start(folder: str, dtype: str, steps: int, side: int, cache: str) -> dict[str, float]:
    """A process of its own."""
    options = {"--child": folder, "--dtype": dtype, "--steps": steps, "--side": side, "--begin": time.time()}
    command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
    environment = {**os.environ, "BRIDLE_CACHE_DIR": cache}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def measure(folder: str, dtype: str, steps: int, side: int, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of every kind of start, in turns."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in STARTS}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name in STARTS:
                rows[name].append(start(folder, dtype, steps, side, "off" if name == "off" else cache))
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in rows.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help="a folder that is there instead of random weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="of an image")
    parser.add_argument("--side", type=int, default=512, help="of an image, in pixels")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        child(arguments.child, arguments.dtype, arguments.steps, arguments.side, arguments.begin)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.model or f"{place}/sd15"
        if not arguments.model:
            write_new_model("sd15", folder, progress=True)
        found = {
            dtype: measure(folder, dtype, arguments.steps, arguments.side, arguments.repeats)
            for dtype in arguments.dtypes
        }
    result = {
        **machine(torch.get_num_threads(), arguments.repeats),
        "model": Path(arguments.model).name if arguments.model else "SD1.5, random weights stored in float32",
        "image": {"side": arguments.side, "steps": arguments.steps},
        "isa": active_isa(),
        "median": found,
    }
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
