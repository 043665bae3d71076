"""Runs an exported folder in optimum's ONNX pipeline and compares its images with Bridle's.

optimum-onnx needs older packages than Bridle does, so it has an environment of its own:

    python -m venv optimum && optimum/bin/pip install optimum-onnx==0.1.0 diffusers==0.39.0 onnxruntime==1.32.0 torch
    optimum/bin/python benchmarks/onnx_optimum.py run FOLDER out.npz
    python benchmarks/onnx_optimum.py compare MODEL out.npz
"""

import argparse
import json
from typing import Any

import numpy as np

PROMPT, SEED, STEPS, SCALE = "a red circle left of a blue star", 7, 8, 5.0


def initial_noise(folder: str) -> Any:
    """The same latents for both programs, [1, 4, h, w]."""
    with open(f"{folder}/unet/config.json") as file:
        config = json.load(file)
    size = config["sample_size"]
    return np.random.default_rng(SEED).standard_normal((1, 4, size, size)).astype(np.float32)


def run(folder: str, out: str) -> None:
    """Writes the latents of the start and the image of optimum's pipeline."""
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
    np.savez(out, latents=latents, image=image)
    print(type(pipeline).__name__, image.shape)


def compare(model: str, out: str) -> None:
    """Prints the largest and the mean difference of the pixels, both in [0, 1]. Fails above one grey level."""
    import bridle

    found = np.load(out)
    request = bridle.Request(
        PROMPT, latents=found["latents"], num_inference_steps=STEPS, guidance_scale=SCALE, prompt_syntax="plain"
    )
    result = bridle.load(model, backend="reference").sample(request)
    assert isinstance(result, bridle.Result)
    difference = np.abs(np.asarray(result.images[0], np.float32) / 255.0 - found["image"][0])
    print(f"largest difference {difference.max():.5f}, mean {difference.mean():.6f}")
    assert difference.max() <= 1.01 / 255.0, "the images differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("run", "compare"))
    parser.add_argument("source", help="run: the exported folder; compare: the model it was made from")
    parser.add_argument("out", help=".npz file")
    given = parser.parse_args()
    (run if given.command == "run" else compare)(given.source, given.out)


if __name__ == "__main__":
    main()
