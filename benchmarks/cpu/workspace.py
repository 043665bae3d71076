"""What the systems share: a folder of random weights, texts, noise and pictures. All seeded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from bridle.architectures import ARCHITECTURES
from bridle.new_model import write_new_model
from cpu.workloads import REGIONS, Workload

PROMPT = "a red circle left of a blue star"
WORDS = ("circle", "star")
GUIDANCE = 7.5
CONTROL_SCALE = 0.5
SCHEDULER = {**ARCHITECTURES["sd15"].scheduler, "timestep_spacing": "trailing"}
"""Trailing, so that a schedule of one step begins with noise, and its result is all the model's output."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Outputs = Mapping[str, Tensor]
"""What a system computed, by name."""


@dataclass(frozen=True)
class Workspace:
    """folder: kept by whoever wants a second run. size: "full" or "tiny"."""

    folder: Path
    size: str

    def model(self, workload: Workload) -> Path:
        """The diffusers folder of a workload."""
        return self.folder / self._arch(workload)

    def side(self, workload: Workload) -> int:
        """Of the latents: 512x512 pixels, or 128x128."""
        return 64 if self.size == "full" else 16

    def output(self, workload: str, system: str) -> Path:
        """Where a system's outputs are kept."""
        return self.folder / "outputs" / workload / f"{system}.pt"

    def exported(self, workload: str, part: str) -> Path:
        """A folder for the files of exporters."""
        return self.folder / "exported" / workload / part

    def _arch(self, workload: Workload) -> str:
        return {"sd15": {"full": "sd15", "tiny": "tiny"}, "sdxl": {"full": "sdxl", "tiny": "tiny-xl"}}[workload.family][
            self.size
        ]

    def prepare(self, workload: Workload) -> None:
        """Writes the model and its texts where they are missing. SDXL is stored in bfloat16, for everybody."""
        model = self.model(workload)
        if not (model / "texts.pt").exists():
            dtype = torch.bfloat16 if workload.family == "sdxl" else torch.float32
            arch = self._arch(workload)
            if not model.exists():
                write_new_model(arch, model, controlnet=workload.family == "sd15", dtype=dtype, progress=True)
            torch.save(encode_texts(model), model / "texts.pt")
        if workload.controlnets > 1 and not (model / "controlnet-2").exists():
            _second_controlnet(model)


def control_folders(workload: Workload) -> list[str]:
    """In the model's folder."""
    names = ["controlnet", *(f"controlnet-{index}" for index in range(2, workload.controlnets + 1))]
    return names[: workload.controlnets]


def _second_controlnet(model: Path) -> None:
    """The first one with every tensor reversed."""
    source, target = model / "controlnet", model / "controlnet-2"
    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    name = "diffusion_pytorch_model.safetensors"
    tensors = {key: value.flip(0).contiguous() for key, value in load_file(source / name).items()}
    save_file(tensors, target / name, metadata={"format": "pt"})


def prompts() -> list[str]:
    """Of the image, and of the regions."""
    return [PROMPT, *(region_prompt(index) for index in range(REGIONS))]


def region_prompt(index: int) -> str:
    """Of one region."""
    return f"a green square number {index}"


def region_box(index: int) -> tuple[float, float, float, float]:
    """Regions stand side by side in the upper three quarters; the prompt has the rest."""
    return (index / REGIONS, 0.0, (index + 1) / REGIONS, 0.75)


def encode_texts(model: Path) -> Mapping[str, Mapping[str, tuple[Tensor, Tensor | None]]]:
    """By dtype and prompt ("" = negative): hidden states [1, 77, D] and SDXL's pooled [1, P], as diffusers encodes."""
    from diffusers import DiffusionPipeline

    kind = json.loads((model / "model_index.json").read_text())["_class_name"]
    import diffusers

    pipeline_type: type[DiffusionPipeline] = getattr(diffusers, kind)
    found: dict[str, dict[str, tuple[Tensor, Tensor | None]]] = {}
    for name, dtype in DTYPES.items():
        pipeline: Any = pipeline_type.from_pretrained(model, unet=None, vae=None, torch_dtype=dtype)
        rows = found.setdefault(name, {})
        for prompt in prompts():
            with torch.no_grad():
                positive, negative, *pooled = pipeline.encode_prompt(
                    prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
                )
            rows[prompt] = (positive, pooled[0] if pooled else None)
            rows[""] = (negative, pooled[1] if pooled else None)
    return found


def noise(workload: Workload, side: int) -> Tensor:
    """[requests, 4, side, side]."""
    return torch.randn(workload.requests, 4, side, side, generator=torch.Generator().manual_seed(1))


def picture(index: int, side: int) -> NDArray[np.uint8]:
    """A control image [side, side, 3]: smooth random colours."""
    coarse = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((side // 8, side // 8, 1), np.uint8))
