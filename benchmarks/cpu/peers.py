"""A workload as a peer does it: rows of diffusers' modules, guidance, diffusers' scheduler, decoding."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from cpu import modules
from cpu.runtimes import EXPORTERS, RUNTIMES, Call, Inputs, Make
from cpu.systems import System
from cpu.workloads import REGIONS, Workload
from cpu.workspace import (
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


@dataclass(frozen=True)
class Part:
    """A network and what it is called with."""

    make: Make
    inputs: Inputs


def parts(workspace: Workspace, workload: Workload, dtype: str) -> dict[str, Part]:
    """ "denoiser" and "decoder", those that the workload needs."""
    found, side = {}, workspace.side(workload)
    if workload.steps:
        found["denoiser"] = Part(_denoiser(workspace, workload), _denoiser_inputs(workspace, workload, dtype))
    if workload.decodes:
        model = workspace.model(workload)
        found["decoder"] = Part(lambda dtype: modules.Decoder(model, dtype), (_latents_to_decode(workload, side),))
    return found


def export(workspace: Workspace, name: str, workload: Workload, system: System) -> None:
    """Writes the files of a runtime that wants some; each part once."""
    for part, content in parts(workspace, workload, "float32").items():
        files = exported(workspace, name, part, system)
        if not (files / "done").exists():
            files.mkdir(parents=True, exist_ok=True)
            EXPORTERS[system.runtime](content.make, content.inputs, files)
            (files / "done").touch()


def exported(workspace: Workspace, name: str, part: str, system: System) -> Path:
    """The files of a part; steps and images share a denoiser, decoding and images a decoder."""
    shared = {("image", "denoiser"): "step", ("image", "decoder"): "decode"}.get((name, part), name)
    return workspace.exported(shared, f"{part}-{system.runtime}")


def build(
    workspace: Workspace, name: str, workload: Workload, system: System, notes: dict[str, str]
) -> Callable[[], Outputs]:
    """What one round runs."""
    dtype, side = DTYPES[system.dtype], workspace.side(workload)
    needed = parts(workspace, workload, system.dtype)
    calls = {
        part: RUNTIMES[system.runtime](
            content.make, dtype, content.inputs, exported(workspace, name, part, system), notes
        )
        for part, content in needed.items()
    }
    if not workload.steps:
        return lambda: {"images": calls["decoder"](needed["decoder"].inputs)[0].float()}
    weights = factors(workload, side)

    def run() -> Outputs:
        outputs = _denoise(calls["denoiser"], needed["denoiser"].inputs, workload, weights)
        if workload.decodes:
            images = calls["decoder"]((outputs["latents"],))[0].float()
            outputs["images"] = (images / 2.0 + 0.5).clamp(0.0, 1.0).permute(0, 2, 3, 1)
        return outputs

    return run


def _denoise(call: Call, inputs: Inputs, workload: Workload, factors: Tensor) -> dict[str, Tensor]:
    """Latents after all steps, and the columns of maps where there are any."""
    scheduler: Any = DDIMScheduler.from_config(dict(SCHEDULER))
    scheduler.set_timesteps(workload.steps)
    rows = workload.rows_per_request
    latents, maps = inputs[0][::rows], ()
    for time in scheduler.timesteps:
        sample = latents.repeat_interleave(rows, 0)
        output, *maps = call((sample, time[None].float(), *inputs[2:]))
        guided = (output.float().unflatten(0, (-1, rows)) * factors).sum(1)
        latents = scheduler.step(guided, time, latents).prev_sample
    return {"latents": latents, **{f"map {index}": found.float() for index, found in enumerate(maps)}}


def factors(workload: Workload, side: int) -> Tensor:
    """[rows of a request, 1, h, w]: what each row's output counts; regions have theirs inside of their boxes."""
    pair = torch.tensor([1.0 - GUIDANCE, GUIDANCE])[:, None, None, None]
    if workload.region_mode is None:
        return pair
    masks = torch.zeros(REGIONS, side, side)
    for index, mask in enumerate(masks):
        left, top, right, bottom = (round(edge * side) for edge in region_box(index))
        mask[top:bottom, left:right] = 1.0
    shares = torch.cat([1.0 - masks.sum(0, keepdim=True), masks])
    return torch.cat([pair * share for share in shares])


def _denoiser(workspace: Workspace, workload: Workload) -> Make:
    model = workspace.model(workload)
    if workload.family == "sdxl":
        return lambda dtype: modules.SdxlDenoiser(model, dtype)
    if workload.controlnets:
        return lambda dtype: modules.ControlledDenoiser(model, dtype, control_folders(workload))
    if workload.capture:
        columns = word_columns(model)
        return lambda dtype: modules.CapturingDenoiser(model, dtype, columns)
    return lambda dtype: modules.Denoiser(model, dtype)


def _denoiser_inputs(workspace: Workspace, workload: Workload, dtype: str) -> Inputs:
    side, requests, rows = workspace.side(workload), workload.requests, workload.rows_per_request
    texts = torch.load(workspace.model(workload) / "texts.pt")[dtype]
    prompts = [PROMPT, *(region_prompt(index) for index in range(REGIONS))] if workload.region_mode else [PROMPT]
    wanted = [texts[key] for prompt in prompts for key in ("", prompt)] * requests
    inputs = [
        noise(workload, side).repeat_interleave(rows, 0),
        torch.tensor([999.0]),
        torch.cat([text for text, _ in wanted]),
    ]
    if workload.family == "sdxl":
        inputs.append(torch.cat([pooled for _, pooled in wanted]))
        inputs.append(torch.tensor([[8.0 * side, 8.0 * side, 0.0, 0.0, 8.0 * side, 8.0 * side]]).repeat(len(wanted), 1))
    for index in range(workload.controlnets):
        hint = torch.from_numpy(picture(index, 8 * side)).permute(2, 0, 1)[None].float() / 255.0
        inputs.append(hint.repeat(rows * requests, 1, 1, 1))
    return inputs


def _latents_to_decode(workload: Workload, side: int) -> Tensor:
    """Of the size that the decoder was trained for: noise of variance one, in the sampler's scale."""
    return noise(workload, side) * 0.18215


def word_columns(model: Path) -> list[int]:
    """Columns of the words whose maps are captured."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    place, columns = 1, []
    for word in PROMPT.split():
        count = len(tokenizer(word, add_special_tokens=False).input_ids)
        columns += list(range(place, place + count)) if word in WORDS else []
        place += count
    return columns
