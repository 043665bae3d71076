"""The folder of a published architecture with random weights, three ControlNets and an IP-Adapter."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bridle.new_model import write_new_model
from gpu.part import Context

ARCHITECTURES = {"sd15": {"full": "sd15", "tiny": "tiny"}, "sdxl": {"full": "sdxl", "tiny": "tiny-xl"}}
COPIES = ("controlnet-2", "controlnet-3")
"""The same weights again, which nobody knows: they are loaded and computed three times."""


def folder(workspace: Path, family: str) -> Path:
    """Of a family's model."""
    return workspace / family


def ready(workspace: Path, family: str) -> bool:
    """Whether it is complete."""
    return (folder(workspace, family) / "ready").exists()


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Writes it, once."""
    began, family = time.monotonic(), context.argument
    if not ready(context.workspace, family):
        target = folder(context.workspace, family)
        arch = ARCHITECTURES[family][context.size]
        adapter = "plus" if family == "sd15" else None
        write_new_model(arch, target, controlnet=True, t2i=True, ip_adapter=adapter, dtype=torch.float16)
        for name in COPIES:
            shutil.copytree(target / "controlnet", target / name)
        (target / "ready").touch()
    yield {"name": family, "seconds": round(time.monotonic() - began, 1), "problem": None}
