"""What a step saves by keys, values and time shifts that are computed once: `denoise.onnx` beside `model.onnx`.

    python benchmarks/onnx_hoisting.py FOLDER

Two graphs of one exported U-Net in ONNX Runtime on the CPU, in turns, at several sizes: everything but the hoisted work is
the same. FOLDER was written by `bridle export`; SD 1.5 of random weights by `cpu_networks.py --workspace`.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cpu.machine import machine

RESULTS = Path(__file__).parent / "results" / "onnx_hoisting.json"
SIDES = (64, 32, 16)
"""Of the latents: 512, 256 and 128 pixels."""
ROWS, TOKENS = 2, 77
TOLERANCE = 1e-4

Feeds = Mapping[str, Any]


def open_graph(path: Path, threads: int) -> Any:
    """A session, whose threads sleep between runs."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def text_and_time(unet: Path, threads: int) -> tuple[Feeds, Feeds, float]:
    """Inputs of both graphs but for the sample, and the seconds of what is computed once."""
    width = json.loads((unet / "config.json").read_text())["cross_attention_dim"]
    text = np.random.default_rng(0).standard_normal((ROWS, TOKENS, width)).astype(np.float32)
    graphs = [open_graph(unet / f"{name}.onnx", threads) for name in ("cross_kv", "time_table")]
    feeds = [{"encoder_hidden_states": text}, {"timestep": np.full(ROWS, 500.0, np.float32)}]
    seconds, hoisted = [], {}
    for _ in range(3):
        start = time.perf_counter()
        for graph, feed in zip(graphs, feeds, strict=True):
            hoisted.update(zip([output.name for output in graph.get_outputs()], graph.run(None, feed), strict=True))
        seconds.append(time.perf_counter() - start)
    plain = {"timestep": np.array(500.0, np.float32), "encoder_hidden_states": text}
    return plain, hoisted, statistics.median(seconds)


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int, title: str) -> dict[str, dict[str, float]]:
    """Median, fastest and slowest seconds by name; the first round is left out."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in tqdm(range(rounds + 1), unit="round", desc=title):
        for name, call in calls.items():
            time.sleep(0.05)
            start = time.perf_counter()
            call()
            if turn:
                found[name].append(time.perf_counter() - start)
    return {
        name: {"median": round(statistics.median(s), 4), "fastest": round(min(s), 4), "slowest": round(max(s), 4)}
        for name, s in found.items()
    }


def measure(unet: Path, rounds: int, threads: int) -> dict[str, Any]:
    """The report. Raises AssertionError where the graphs disagree."""
    plain, hoisted, once = text_and_time(unet, threads)
    model, denoise = (open_graph(unet / f"{name}.cpu.onnx", threads) for name in ("model", "denoise"))
    sizes = []
    for side in SIDES:
        sample = np.random.default_rng(1).standard_normal((ROWS, 4, side, side)).astype(np.float32)
        calls = {
            "model": lambda sample=sample: model.run(["out_sample"], {"sample": sample, **plain})[0],
            "denoise": lambda sample=sample: denoise.run(["out_sample"], {"sample": sample, **hoisted})[0],
        }
        right, same = calls["model"](), calls["denoise"]()
        distance = float(np.linalg.norm(same - right) / np.linalg.norm(right))
        assert distance < TOLERANCE, f"the graphs are {distance:.2g} apart"
        seconds = in_turns(calls, rounds, f"{8 * side} pixels")
        ratio = round(seconds["model"]["median"] / seconds["denoise"]["median"], 3)
        sizes.append({"pixels": 8 * side, "seconds": seconds, "ratio": ratio, "distance": distance})
    return {"once_seconds": round(once, 4), "sizes": sizes, **machine(threads=threads, rounds=rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    report = measure(given.folder / "unet", given.rounds, given.threads)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["sizes"], indent=1))


if __name__ == "__main__":
    main()
