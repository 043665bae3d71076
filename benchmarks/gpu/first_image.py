"""Part "first_image:SYSTEM-FAMILY": from a process's start to its first image: nothing is captured yet, kernels are on disk."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from gpu import models
from gpu.part import Context

BEGAN = time.time()
STEPS = 20
SIDE = {"sd15": {"full": 512, "tiny": 64}, "sdxl": {"full": 1024, "tiny": 64}}


def run(context: Context) -> Iterator[dict[str, Any]]:
    """ "ours" or "eager" with 20 steps in float16. The start of Python itself is in neither.

    peak_mib: of the whole process, weights and graphs included; nobody else's rows were in it.
    """
    system, _, family = context.argument.partition("-")
    if not models.ready(context.workspace, family):
        yield {"name": context.argument, "problem": "its weights were not written in time"}
        return
    loaded, ended = {"ours": ours, "eager": eager}[system](context, family)
    peak = torch.cuda.max_memory_reserved() / 2**20 if context.device == "cuda" else 0.0
    yield {
        "name": context.argument,
        "load_seconds": round(loaded - BEGAN, 2),
        "first_image_seconds": round(ended - BEGAN, 2),
        "peak_mib": round(peak, 1),
        "problem": None,
    }


def ours(context: Context, family: str) -> tuple[float, float]:
    """When it was loaded, and when the image was there."""
    import bridle

    cuda = context.device == "cuda"
    engine = bridle.load(
        models.folder(context.workspace, family),
        backend="cuda" if cuda else "reference",
        device=context.device,
        dtype="float16" if cuda else "float32",
    )
    loaded, side = time.time(), SIDE[family][context.size]
    engine.sample(bridle.Request("a red circle", width=side, height=side, num_inference_steps=STEPS))
    return loaded, time.time()


def eager(context: Context, family: str) -> tuple[float, float]:
    """The same by diffusers' pipeline."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    dtype = torch.float16 if context.device == "cuda" else torch.float32
    kind, rest = (
        (StableDiffusionPipeline, {"safety_checker": None}) if family == "sd15" else (StableDiffusionXLPipeline, {})
    )
    folder = models.folder(context.workspace, family)
    pipeline: Any = kind.from_pretrained(folder, torch_dtype=dtype, **rest).to(context.device)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    loaded, side = time.time(), SIDE[family][context.size]
    pipeline("a red circle", width=side, height=side, num_inference_steps=STEPS)
    return loaded, time.time()
