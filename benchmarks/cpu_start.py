"""SD1.5 on the CPU backend, 512x512: from the start of a process to its first step, without and with packed weights on disk.

    python benchmarks/cpu_start.py --out benchmarks/results/cpu_start.json

Writes random SD1.5 weights to a temporary folder, then starts processes: with the cache off, with an empty one, and with
a full one. Each loads the model, encodes the prompts and makes one guided step. Memory is the peak resident size, with
the pages of mapped files that were touched. `record_seconds` is a plan for another size, whose weights are packed.
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
from pathlib import Path

import torch

import bridle
from bridle.backends import programs
from bridle.backends.cpu import CpuBackend
from bridle.new_model import write_new_model
from bridle_kernels import active_isa
from cpu.machine import machine

STARTS = ("off", "cold", "warm")


def child(folder: str, dtype: str, begin: float) -> None:
    """One start; prints one JSON line. begin: when the process was started, in seconds of the epoch."""
    engine = bridle.load(folder, backend="cpu", dtype=dtype)
    loaded, steps = time.time(), []
    backend = engine.backend
    assert isinstance(backend, CpuBackend)

    def seen(_: object) -> None:
        steps.append(time.time())
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    peak: list[float] = []
    engine.sample(
        bridle.Request("a cat", num_inference_steps=2, guidance_scale=7.5, width=512, height=512, output_type="latent"),
        callback=seen,
    )
    again = time.perf_counter()
    programs.record_unet(backend.model.unet, backend._packed, backend.dtype, (2, 4, 72, 64), None)
    row = {
        "load_seconds": loaded - begin,
        "first_step_seconds": steps[0] - begin,
        "second_step_seconds": steps[1] - steps[0],
        "record_seconds": time.perf_counter() - again,
        "peak_mib": peak[0],
    }
    print(json.dumps({name: round(value, 3) for name, value in row.items()}))


def start(folder: str, dtype: str, cache: str) -> dict[str, float]:
    """A process of its own."""
    command = [sys.executable, __file__, "--child", folder, "--dtype", dtype, "--begin", str(time.time())]
    environment = {**os.environ, "BRIDLE_CACHE_DIR": cache}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def measure(folder: str, dtype: str, repeats: int) -> dict[str, dict[str, float]]:
    """Medians of every kind of start, in turns."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in STARTS}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name in STARTS:
                rows[name].append(start(folder, dtype, "off" if name == "off" else cache))
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in rows.items()}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help="a folder that is there instead of random weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.dtype, arguments.begin)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.model or f"{place}/sd15"
        if not arguments.model:
            write_new_model("sd15", folder, progress=True)
        found = {dtype: measure(folder, dtype, arguments.repeats) for dtype in arguments.dtypes}
    result = {
        **machine(torch.get_num_threads(), arguments.repeats),
        "model": "SD1.5, random weights stored in float32, 512x512, two rows a step",
        "isa": active_isa(),
        "median": found,
    }
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
