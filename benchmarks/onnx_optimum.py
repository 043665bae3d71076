"""Runs an exported folder in optimum's ONNX pipeline and compares its images with Bridle's.

optimum-onnx needs older packages than Bridle does, so it has an environment of its own:

    python -m venv optimum && optimum/bin/pip install optimum-onnx==0.1.0 diffusers==0.39.0 onnxruntime==1.32.0 torch
    optimum/bin/python benchmarks/onnx_optimum.py run FOLDER out.npz
    python benchmarks/onnx_optimum.py compare MODEL out.npz

The last one keeps what it found in benchmarks/results/onnx_optimum.json, an entry for each class of pipeline.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, SEED, STEPS, SCALE = "a red circle left of a blue star", 7, 8, 5.0
RESULTS = Path(__file__).parent / "results" / "onnx_optimum.json"
PACKAGES = ("optimum-onnx", "diffusers", "transformers", "onnxruntime", "torch")


def initial_noise(folder: str) -> Any:
    """The same latents for both programs, [1, 4, h, w]."""
    with open(f"{folder}/unet/config.json") as file:
        config = json.load(file)
    size = config["sample_size"]
    return np.random.default_rng(SEED).standard_normal((1, 4, size, size)).astype(np.float32)


def run(folder: str, out: str) -> None:
    """Writes the latents of the start, the image of optimum's pipeline, its class and the versions."""
    import torch
    from optimum.onnxruntime import ORTDiffusionPipeline

    pipeline = ORTDiffusionPipeline.from_pretrained(folder, export=False)
    latents = initial_noise(folder)
    side = latents.shape[-1] * pipeline.vae_scale_factor
    image = pipeline(
        PROMPT,
        latents=torch.from_numpy(latents),
        height=side,
        width=side,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        output_type="np",
    ).images
    versions = json.dumps({name: version(name) for name in PACKAGES})
    np.savez(out, latents=latents, image=image, pipeline=type(pipeline).__name__, versions=versions)
    print(type(pipeline).__name__, image.shape)


def compare(model: str, out: str) -> None:
    """Keeps the largest and the mean difference of the pixels, both in [0, 1]. Fails above one grey level."""
    import bridle
    from cpu.machine import machine

    found = np.load(out)
    request = bridle.Request(
        PROMPT, latents=found["latents"], num_inference_steps=STEPS, guidance_scale=SCALE, prompt_syntax="plain"
    )
    result = bridle.load(model, backend="reference").sample(request)
    assert isinstance(result, bridle.Result)
    difference = np.abs(np.asarray(result.images[0], np.float32) / 255.0 - found["image"][0])
    assert difference.max() <= 1.01 / 255.0, f"the images differ by {difference.max():.5f}"
    where = machine(threads=1, rounds=1)
    keep(
        {
            "pipeline": str(found["pipeline"]),
            "image": list(found["image"].shape[1:]),
            "steps": STEPS,
            "largest_difference": round(float(difference.max()), 6),
            "mean_difference": round(float(difference.mean()), 6),
            "image_deviation": round(float(found["image"].std()), 4),
            "optimum_versions": json.loads(str(found["versions"])),
            "date": where["date"],
            "git": where["git"],
        }
    )


def keep(row: dict[str, Any]) -> None:
    """Puts a row in the place of that of the same class."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [other for other in rows if other["pipeline"] != row["pipeline"]]
    RESULTS.write_text(json.dumps([*rows, row], indent=1) + "\n")
    print(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("run", "compare"))
    parser.add_argument("source", help="run: the exported folder; compare: the model it was made from")
    parser.add_argument("out", help=".npz file")
    given = parser.parse_args()
    (run if given.command == "run" else compare)(given.source, given.out)


if __name__ == "__main__":
    main()
