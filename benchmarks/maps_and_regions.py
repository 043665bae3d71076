"""What maps and regions cost on each backend of the CPU: alternating runs in one process, medians, ratios.

    python benchmarks/maps_and_regions.py --out benchmarks/results/maps_and_regions.json

Capture on a pocket model; regions inside cross-attention on random weights of SD1.5 at 512x512. Time is that of the
denoising loop alone.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import bridle
from bridle.new_model import write_new_model

PROMPT = "a red circle left of a blue star"
REGIONS = (1, 2, 4)
BACKENDS = ("reference", "cpu")


def measure(engine: bridle.Engine, requests: Mapping[str, bridle.Request], repeats: int) -> dict[str, float]:
    """Median seconds of the loop by name; the first round, which fills caches, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in requests}
    for turn in tqdm(range(repeats + 1), unit="round"):
        for name, request in requests.items():
            result = engine.sample(request, progress=False)
            assert isinstance(result, bridle.Result)
            if turn:
                seconds[name].append(result.timings["denoise"])
    return {name: statistics.median(values) for name, values in seconds.items()}


def captures(backend: str, model: str | None, repeats: int) -> dict[str, float]:
    """A pocket model, with and without heat maps of two words."""
    fields: dict[str, Any] = {"num_inference_steps": 20, "output_type": "latent"}
    requests = {
        "plain": bridle.Request(PROMPT, **fields),
        "CaptureMaps": bridle.Request(PROMPT, attention=[bridle.CaptureMaps(["circle", "star"])], **fields),
    }
    return measure(bridle.load(model, backend=backend), requests, repeats)


def regions(backend: str, repeats: int) -> dict[str, float]:
    """SD1.5 with 0, 1, 2 and 4 regions side by side."""
    with tempfile.TemporaryDirectory() as place:
        write_new_model("sd15", f"{place}/sd15", progress=True)
        engine = bridle.load(f"{place}/sd15", backend=backend)
        fields: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
        requests = {"plain": bridle.Request(PROMPT, **fields)}
        for count in REGIONS:
            requests[f"{count} regions"] = bridle.Request(PROMPT, regions=columns(count), **fields)
        return measure(engine, requests, repeats)


def columns(count: int) -> Sequence[bridle.Region]:
    """Regions that divide the image from left to right."""
    return [bridle.Region("a blue star", (i / count, 0.0, (i + 1) / count, 1.0)) for i in range(count)]


def summary(name: str, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Seconds, and the share of extra time, for each region where there are several."""
    extra = {
        key: round((value / seconds["plain"] - 1.0) / (int(key.split()[0]) if key[0].isdigit() else 1), 4)
        for key, value in seconds.items()
        if key != "plain"
    }
    return {"case": name, "seconds": {key: round(value, 4) for key, value in seconds.items()}, "extra": extra}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("maps_and_regions.json"))
    parser.add_argument("--model", help="a pocket model's folder; default: the model in the package")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "git": commit.stdout.strip(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capture": {
            backend: summary("pocket model, 20 steps, 2 words", captures(backend, arguments.model, arguments.repeats))
            for backend in BACKENDS
        },
        "regions": {
            backend: summary(
                "SD1.5, 512x512, two rows, extra time for each region", regions(backend, arguments.repeats)
            )
            for backend in BACKENDS
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
