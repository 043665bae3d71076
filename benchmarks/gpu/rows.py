"""The rows of the table of timings by group, in the order of their weight: what does not fit the time is left out."""

from collections.abc import Mapping
from dataclasses import dataclass

from cpu.workloads import Workload

STEPS = 10
"""Denoising steps of one timed run; a row's figure is that of one step."""
FEW = 4
"""Of large batches, whose steps take as long as ten of one image."""


@dataclass(frozen=True)
class Row(Workload):
    """edit: prompt-to-prompt, source and edit. image_prompt: an IP-Adapter. deterministic: ours alone, as DET1 has it.

    steps: 0 is a decode. Every row but those of DET1 is measured for all systems.
    """

    steps: int = STEPS
    edit: bool = False
    image_prompt: bool = False
    deterministic: bool = False

    @property
    def images(self) -> int:
        """Denoised together."""
        return self.requests * (2 if self.edit else 1)

    @property
    def group(self) -> str:
        """Rows of a group are measured by one process: a family's, or its batches."""
        return f"{self.family}-batch" if self.requests > 1 else self.family


def _family(family: str, title: str) -> dict[str, Row]:
    return {
        family: Row(title, family=family),
        f"{family}-controlnet": Row(f"{title}, one ControlNet", family=family, controlnets=1),
        f"{family}-decode": Row(f"{title}, VAE decode", family=family, steps=0),
        f"{family}-regions-attention": Row(
            f"{title}, 4 regions in cross-attention; peers: rows", family=family, region_mode="attention"
        ),
        f"{family}-edit": Row(f"{title}, prompt-to-prompt; peers: four rows, no edit", family=family, edit=True),
        f"{family}-capture": Row(f"{title}, map capture", family=family, capture=True),
        f"{family}-image-prompt": Row(f"{title}, IP-Adapter", family=family, image_prompt=True),
        f"{family}-controlnets-3": Row(f"{title}, three ControlNets", family=family, controlnets=3),
        f"{family}-regions-latent": Row(f"{title}, 4 regions as rows", family=family, region_mode="latent"),
        f"{family}-deterministic": Row(f"{title}, DET1", family=family, deterministic=True),
        f"{family}-batch-4": Row(f"{title}, batch 4", family=family, requests=4, steps=FEW),
        f"{family}-batch-8": Row(f"{title}, batch 8", family=family, requests=8, steps=FEW),
        f"{family}-batch-4-deterministic": Row(
            f"{title}, batch 4, DET1", family=family, requests=4, steps=FEW, deterministic=True
        ),
    }


ROWS: Mapping[str, Row] = {**_family("sd15", "SD 1.5, 512x512"), **_family("sdxl", "SDXL, 1024x1024")}
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS.values()))


def side(row: Row, size: str) -> int:
    """Of the latents."""
    if size == "tiny":
        return 16
    return {"sd15": 64, "sdxl": 128}[row.family]
