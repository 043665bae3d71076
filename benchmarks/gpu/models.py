"""The folder of a published architecture with random weights, three ControlNets and an IP-Adapter, which all systems load.

Numbers are drawn on the device in half precision: SDXL's are 10 GB, which a CPU would draw in float32 for minutes.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bridle.new_model import write_new_model
from gpu.part import Context
from gpu.plan import READY

ARCHITECTURES = {"sd15": {"full": "sd15", "tiny": "tiny"}, "sdxl": {"full": "sdxl", "tiny": "tiny-xl"}}
COPIES = ("controlnet-2", "controlnet-3")
"""The same files again, which nobody knows: they are loaded and computed three times."""


def folder(workspace: Path, family: str) -> Path:
    """Of a family's model."""
    return workspace / family


def ready(workspace: Path, family: str) -> bool:
    """Whether it is complete."""
    return (folder(workspace, family) / READY).exists()


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Writes it, once."""
    began, family = time.monotonic(), context.argument
    if not ready(context.workspace, family):
        target = folder(context.workspace, family)
        arch = ARCHITECTURES[family][context.size]
        write_new_model(arch, target, controlnet=True, ip_adapter="plus", dtype=torch.float16, device=context.device)
        for name in COPIES:
            shutil.copytree(target / "controlnet", target / name, copy_function=_linked)
        (target / READY).touch()
    yield {"name": family, "seconds": round(time.monotonic() - began, 1), "problem": None}


def _linked(source: str, target: str) -> None:
    """Nothing is written twice, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
