"""A workload as Bridle does it: requests, and the seconds that their results report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bridle
import bridle_exporters
from cpu.systems import System
from cpu.workloads import REGIONS, Workload
from cpu.workspace import (
    CONTROL_SCALE,
    DTYPES,
    GUIDANCE,
    PROMPT,
    SCHEDULER,
    WORDS,
    Outputs,
    Workspace,
    control_folders,
    noise,
    picture,
    region_box,
    region_prompt,
)


def build(workspace: Workspace, workload: Workload, system: System) -> Callable[[], tuple[Outputs, float | None]]:
    """What one round runs: outputs, and seconds of denoising and decoding (None: those of the whole call)."""
    assert system.backend is not None
    model = graphs(workspace, workload) if system.graphs else workspace.model(workload)
    engine = bridle.load(model, backend=system.backend, dtype=system.dtype)
    side = workspace.side(workload)
    if not workload.steps:
        latents = (noise(workload, side) * 0.18215).to(DTYPES[system.dtype])
        return lambda: ({"images": engine.backend.decode_image(latents, tiling=False).float()}, None)
    requests = [request(workload, side, row) for row in noise(workload, side)]

    def run() -> tuple[Outputs, float]:
        results = engine.sample(requests, progress=False)
        assert isinstance(results, list)
        timings = results[0].timings
        return outputs(results, workload), timings["denoise"] + (timings["decode"] if workload.decodes else 0.0)

    return run


def graphs(workspace: Workspace, workload: Workload) -> Path:
    """The exported folder of a workload's model, with its ControlNets and only the features that it asks for."""
    return workspace.exported("graphs", "-".join([workload.family, *control_folders(workload), *_features(workload)]))


def export(workspace: Workspace, workload: Workload) -> None:
    """Writes `graphs` where they are missing."""
    out, model = graphs(workspace, workload), workspace.model(workload)
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        controls = [model / folder for folder in control_folders(workload)]
        bridle_exporters.export(model, out, controls=controls, features=_features(workload))


def _features(workload: Workload) -> list[str]:
    asked = {
        "residuals": workload.controlnets > 0,
        "regions": workload.region_mode == "attention",
        "maps": workload.capture,
    }
    return [name for name, wanted in asked.items() if wanted]


def request(workload: Workload, side: int, own_noise: Tensor) -> bridle.Request:
    """One of the workload's equal requests."""
    fields: dict[str, Any] = {}
    if workload.region_mode is not None:
        fields["regions"] = [bridle.Region(region_prompt(index), region_box(index)) for index in range(REGIONS)]
        fields |= {"region_mode": workload.region_mode, "bootstrapping_steps": 0}
    if workload.capture:
        fields["attention"] = [bridle.CaptureMaps(list(WORDS))]
    fields["controls"] = [
        bridle.ControlNet(folder, picture(index, 8 * side), scale=CONTROL_SCALE)
        for index, folder in enumerate(control_folders(workload))
    ]
    return bridle.Request(
        PROMPT,
        latents=own_noise[None],
        width=8 * side,
        height=8 * side,
        num_inference_steps=workload.steps,
        guidance_scale=GUIDANCE,
        scheduler=SCHEDULER,
        output_type="np" if workload.decodes else "latent",
        **fields,
    )


def outputs(results: list[bridle.Result], workload: Workload) -> Outputs:
    """Named as the peers name theirs."""
    found: dict[str, Tensor] = {"latents": torch.cat([result.latents for result in results])}
    if workload.decodes:
        found["images"] = torch.cat([torch.from_numpy(result.images) for result in results])
    if workload.capture:
        found |= {f"map of {word}": torch.from_numpy(heat) for word, heat in results[0].maps.items()}
    return found
