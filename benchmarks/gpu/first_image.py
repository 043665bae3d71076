"""Part "first_image:SYSTEM": seconds from the start of a process to the first image, nothing compiled or captured before."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from gpu import models
from gpu.part import Context

BEGAN = time.time()
STEPS = 20
SIDE = {"full": 512, "tiny": 64}


def run(context: Context) -> Iterator[dict[str, Any]]:
    """ "ours" or "eager", SD 1.5 in float16 with 20 steps. The start of Python itself is in neither."""
    if not models.ready(context.workspace, "sd15"):
        yield {"name": context.argument, "problem": "its weights were not written in time"}
        return
    loaded, ended = {"ours": ours, "eager": eager}[context.argument](context)
    peak = torch.cuda.max_memory_reserved() / 2**20 if context.device == "cuda" else 0.0
    yield {
        "name": context.argument,
        "load_seconds": round(loaded - BEGAN, 2),
        "first_image_seconds": round(ended - BEGAN, 2),
        "peak_mib": round(peak, 1),
        "problem": None,
    }


def ours(context: Context) -> tuple[float, float]:
    """When it was loaded, and when the image was there."""
    import bridle

    cuda = context.device == "cuda"
    engine = bridle.load(
        models.folder(context.workspace, "sd15"),
        backend="cuda" if cuda else "reference",
        device=context.device,
        dtype="float16" if cuda else "float32",
    )
    loaded, side = time.time(), SIDE[context.size]
    engine.sample(bridle.Request("a red circle", width=side, height=side, num_inference_steps=STEPS))
    return loaded, time.time()


def eager(context: Context) -> tuple[float, float]:
    """The same by diffusers' pipeline."""
    from diffusers import StableDiffusionPipeline

    dtype = torch.float16 if context.device == "cuda" else torch.float32
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        models.folder(context.workspace, "sd15"), torch_dtype=dtype, safety_checker=None
    ).to(context.device)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    loaded, side = time.time(), SIDE[context.size]
    pipeline("a red circle", width=side, height=side, num_inference_steps=STEPS)
    return loaded, time.time()
