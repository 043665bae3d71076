"""The rows of the table of timings, in the order of their weight: what does not fit the time is left out from the end."""

from collections.abc import Mapping
from dataclasses import dataclass

from cpu.workloads import Workload

STEPS = 10
"""Denoising steps of one timed run; a row's figure is that of one step."""


@dataclass(frozen=True)
class Row(Workload):
    """edit: prompt-to-prompt, source and edit. image_prompt: an IP-Adapter. compiled: whether torch.compile takes part.

    steps: 0 is a decode.
    """

    steps: int = STEPS
    edit: bool = False
    image_prompt: bool = False
    compiled: bool = True

    @property
    def images(self) -> int:
        """Denoised together."""
        return self.requests * (2 if self.edit else 1)


ROWS: Mapping[str, Row] = {
    "sd15": Row("SD 1.5, 512x512"),
    "sdxl": Row("SDXL, 1024x1024", family="sdxl"),
    "sd15-controlnet": Row("SD 1.5, one ControlNet", controlnets=1),
    "sd15-batch-8": Row("SD 1.5, batch 8", requests=8),
    "sd15-decode": Row("SD 1.5, VAE decode", steps=0),
    "sdxl-decode": Row("SDXL, VAE decode", family="sdxl", steps=0),
    "sd15-regions-attention": Row(
        "SD 1.5, 4 regions in cross-attention; peers: rows", region_mode="attention", compiled=False
    ),
    "sd15-edit": Row("SD 1.5, prompt-to-prompt; peers: four rows, no edit", edit=True, compiled=False),
    "sd15-capture": Row("SD 1.5, map capture", capture=True, compiled=False),
    "sd15-image-prompt": Row("SD 1.5, IP-Adapter", image_prompt=True, compiled=False),
    "sd15-controlnets-3": Row("SD 1.5, three ControlNets", controlnets=3),
    "sd15-regions-latent": Row("SD 1.5, 4 regions as rows", region_mode="latent", compiled=False),
    "sd15-batch-4": Row("SD 1.5, batch 4", requests=4),
    "sdxl-controlnet": Row("SDXL, one ControlNet", family="sdxl", controlnets=1),
    "sdxl-batch-4": Row("SDXL, batch 4", family="sdxl", requests=4),
    "sdxl-controlnets-3": Row("SDXL, three ControlNets", family="sdxl", controlnets=3),
    "sdxl-batch-8": Row("SDXL, batch 8", family="sdxl", requests=8),
}


def side(row: Row, size: str) -> int:
    """Of the latents."""
    if size == "tiny":
        return 16
    return {"sd15": 64, "sdxl": 128}[row.family]
