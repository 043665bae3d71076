"""Part "first_image:SYSTEM-FAMILY": from a process's start to its first image: nothing was captured or compiled before."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gpu import bundle, models
from gpu.part import Context

BEGAN = time.time()
STEPS = 20
SIDE = {"sd15": {"full": 512, "tiny": 64}, "sdxl": {"full": 1024, "tiny": 64}}


def run(context: Context) -> Iterator[dict[str, Any]]:
    """ "ours", which compiles its kernels, "bundle", the same with those of `gpu.bundle`, or "eager": 20 steps in float16.

    The start of Python and PyTorch's import are in none. Triton's cache is a new, empty folder, so that what other parts
    compiled serves nobody. compiled: how many kernels are in it in the end. peak_mib: of the whole process, weights and
    graphs included; nobody else's rows were in it.
    """
    system, _, family = context.argument.partition("-")
    if not models.ready(context.workspace, family):
        yield {"name": context.argument, "problem": "its weights were not written in time"}
        return
    if system == "bundle" and not bundle.ready(context.workspace, family):
        yield {"name": context.argument, "left_out": "its kernels were not exported", "problem": None}
        return
    with TemporaryDirectory(dir=context.workspace) as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        loaded, ended = SYSTEMS[system](context, family)
        compiled = len(list(Path(cache).rglob("*.cubin")))
    peak = torch.cuda.max_memory_reserved() / 2**20 if context.device == "cuda" else 0.0
    yield {
        "name": context.argument,
        "load_seconds": round(loaded - BEGAN, 2),
        "first_image_seconds": round(ended - BEGAN, 2),
        "compiled": compiled,
        "peak_mib": round(peak, 1),
        "problem": None,
    }


def bundled(context: Context, family: str) -> tuple[float, float]:
    """As `ours`, with kernels that were exported."""
    return ours(context, family, bundle.folder(context.workspace, family))


def ours(context: Context, family: str, kernels: Path | None = None) -> tuple[float, float]:
    """When it was loaded, and when the image was there. kernels: folder of a bundle."""
    import bridle

    cuda = context.device == "cuda"
    engine = bridle.load(
        models.folder(context.workspace, family),
        backend="cuda" if cuda else "reference",
        device=context.device,
        dtype="float16" if cuda else "float32",
        kernels=kernels,
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


SYSTEMS = {"ours": ours, "bundle": bundled, "eager": eager}
