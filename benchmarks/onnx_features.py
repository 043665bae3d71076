"""What the optional inputs of a U-Net cost where nobody feeds them: one exported without features beside one with all.

    python benchmarks/onnx_features.py PLAIN FEATURED

Two folders that `bridle export` wrote of the same model, without `--features` and with residuals,regions,maps. Their
`denoise.onnx` run in ONNX Runtime on the CPU, in turns, with the same required inputs.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cpu.machine import machine
from onnx_hoisting import ROWS, TOLERANCE, in_turns, open_graph, text_and_time

RESULTS = Path(__file__).parent / "results" / "onnx_features.json"


def measure(folders: dict[str, Path], side: int, rounds: int, threads: int) -> dict[str, Any]:
    """The report. folders: by name. side: of the latents. Raises AssertionError where the graphs disagree."""
    graphs = {name: open_graph(folder / "unet" / "denoise.cpu.onnx", threads) for name, folder in folders.items()}
    _, hoisted, _ = text_and_time(folders["plain"] / "unet", threads)
    sample = np.random.default_rng(1).standard_normal((ROWS, 4, side, side)).astype(np.float32)
    feeds = {"sample": sample, **hoisted}
    calls = {name: lambda graph=graph: graph.run(["out_sample"], feeds)[0] for name, graph in graphs.items()}
    right, same = calls["plain"](), calls["featured"]()
    distance = float(np.linalg.norm(same - right) / np.linalg.norm(right))
    assert distance < TOLERANCE, f"the graphs are {distance:.2g} apart"
    seconds = in_turns(calls, rounds, f"{8 * side} pixels")
    ratio = round(seconds["featured"]["median"] / seconds["plain"]["median"], 3)
    found = {"pixels": 8 * side, "seconds": seconds, "ratio": ratio, "distance": distance}
    return {**found, **machine(threads=threads, rounds=rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plain", type=Path)
    parser.add_argument("featured", type=Path)
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    folders = {"plain": given.plain, "featured": given.featured}
    report = measure(folders, given.side, given.rounds, given.threads)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
