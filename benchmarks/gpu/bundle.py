"""Part "bundle:FAMILY": what `bridle export-kernels --model` writes for the device at hand, compiled beside the checks."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpu import models
from gpu.part import Context

JOBS = 3
"""Processes of a family. The checks beside them compile too."""


def folder(workspace: Path, family: str) -> Path:
    """Of a family's kernels."""
    return workspace / f"bundle-{family}"


def ready(workspace: Path, family: str) -> bool:
    """Whether it is complete."""
    return folder(workspace, family).exists()


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Float16 kernels for the model's head dimensions. Raises KernelBundleError for a kernel that is not what it should be."""
    from bridle_exporters.aot import ARCHITECTURES  # not above: who asks for `ready` shall not wait for Triton's import
    from bridle_exporters.kernel_bundle import export_kernels

    began, family = time.monotonic(), context.argument
    if context.device != "cuda":
        yield {"name": family, "left_out": "there is no GPU", "problem": None}
        return
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor not in ARCHITECTURES:
        yield {"name": family, "left_out": f"no kernels are exported for sm_{major}{minor}", "problem": None}
        return
    target = folder(context.workspace, family)
    unfinished = target.with_suffix(".partial")
    dims = head_dims(models.ARCHITECTURES[family][context.size])
    manifest = export_kernels(unfinished, 10 * major + minor, dims, torch.float16, jobs=JOBS)
    count = len(json.loads(manifest.read_text())["kernels"])
    unfinished.rename(target)
    seconds = round(time.monotonic() - began, 1)
    yield {"name": family, "arch": f"sm_{major}{minor}", "kernels": count, "seconds": seconds, "problem": None}


def head_dims(arch: str) -> set[int]:
    """Of the attentions of an architecture's U-Net, whose weights may not be written yet."""
    from bridle.architectures import ARCHITECTURES
    from bridle.networks.configs import UNetConfig
    from bridle.networks.trunk import attention_sites

    config = UNetConfig.from_dict(ARCHITECTURES[arch].unet, "config.json")
    return {site.dim for site in attention_sites(config)}
