"""SD1.5, 512x512, text to image: time and peak memory of the reference backend against diffusers, one run for both.

    python benchmarks/reference_pipeline.py --out benchmarks/results/reference_pipeline.json

Writes random SD1.5 weights to a temporary folder, then runs each implementation in processes of its own, in turns:
load, a few guided steps, decode. Reports medians and ratios. Memory is the process's peak resident size: its own pages
and those of the mapped weight files that it has touched, for both alike.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import torch
from tqdm import tqdm

import bridle
from bridle.new_model import write_new_model

PROMPT, NEGATIVE, GUIDANCE, SEED = "a red circle left of a blue square", "blurry", 7.5, 7
NAMES = ("diffusers", "bridle reference")


def load_diffusers(folder: str, steps: int) -> Callable[[], torch.Tensor]:
    """A function that makes the image."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED)
        images = pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=generator,
            output_type="np",
        ).images
        return torch.from_numpy(images)

    return run


def load_bridle(folder: str, steps: int) -> Callable[[], torch.Tensor]:
    """A function that makes the image."""
    engine = bridle.load(folder, backend="reference")
    request = bridle.Request(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        seed=SEED,
        output_type="np",
    )

    def run() -> torch.Tensor:
        result = engine.sample(request)
        assert isinstance(result, bridle.Result)
        return torch.as_tensor(result.images)

    return run


LOADERS = dict(zip(NAMES, (load_diffusers, load_bridle), strict=True))


def child(name: str, folder: str, steps: int) -> None:
    """Runs in a process of its own; prints one JSON line."""
    begin = time.perf_counter()
    run = LOADERS[name](folder, steps)
    loaded = time.perf_counter()
    with torch.inference_mode():
        images = run()
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {"load_seconds": loaded - begin, "image_seconds": done - loaded, "peak_mib": peak}
    print(json.dumps({**row, "mean": float(images.double().mean())}))


def measure(folder: str, steps: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Alternating runs."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    order = [name for _ in range(repeats) for name in NAMES]
    for name in tqdm(order, unit="run"):
        command = [sys.executable, __file__, "--child", name, "--folder", folder, "--steps", str(steps)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows[name].append(json.loads(output.splitlines()[-1]))
    return rows


def summary(rows: dict[str, list[dict[str, float]]], steps: int) -> dict[str, Any]:
    """Medians, ratios and where they were measured."""
    medians = {
        name: {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        for name, runs in rows.items()
    }
    theirs, ours = (medians[name] for name in NAMES)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "git": commit.stdout.strip(),
        "model": "SD1.5, random weights, float32, 512x512, two rows a step",
        "steps": steps,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "median": medians,
        "ratio": {key: round(ours[key] / theirs[key], 3) for key in ("load_seconds", "image_seconds", "peak_mib")},
        "runs": rows,
    }


def main() -> None:
    """Parent or child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("reference_pipeline.json"))
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder, arguments.steps)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = f"{place}/sd15"
        write_new_model("sd15", folder, progress=True)
        report = summary(measure(folder, arguments.steps, arguments.repeats), arguments.steps)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print("| | load s | image s | peak MiB |\n|---|---|---|---|")
    for name in NAMES:
        row = report["median"][name]
        print(f"| {name} | {row['load_seconds']:.1f} | {row['image_seconds']:.1f} | {row['peak_mib']:.0f} |")
    ratio = report["ratio"]
    print(f"| ratio | {ratio['load_seconds']} | {ratio['image_seconds']} | {ratio['peak_mib']} |")


if __name__ == "__main__":
    main()
