"""MultiDiffusion with regions, written out: a scheduler for every view, a prediction for every prompt, whole masks."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

Window = tuple[int, int, int, int]
"""First row, row behind the last, first column, column behind the last, in latent cells."""


@dataclass(frozen=True)
class NaivePrompt:
    """One prompt of the canvas. mask: [h, w] of 0 and 1."""

    prompt: str
    negative: str
    mask: Tensor
    weight: float = 1.0
    guidance: float = 5.0


def naive_latents(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[NaivePrompt],
    windows: Sequence[Window],
    *,
    steps: int,
    bootstrapping: int,
    seed: int,
) -> Tensor:
    """[1, 4, h, w]. prompts: that of the background first. Draws from one generator in the official order."""
    generator = torch.Generator().manual_seed(seed)
    texts = [pipeline.encode_prompt(p.prompt, "cpu", 1, True, p.negative) for p in prompts]
    masks = torch.stack([p.mask for p in prompts])[:, None]
    weights = torch.tensor([p.weight for p in prompts])[:, None, None, None] * masks
    pipeline.scheduler.set_timesteps(steps)
    schedulers = [copy.deepcopy(pipeline.scheduler) for _ in windows]
    top, bottom, left, right = windows[0]
    backgrounds = _backgrounds(pipeline, bootstrapping, (bottom - top, right - left), generator)
    noise = torch.randn((1, 4, *masks.shape[-2:]), generator=generator)
    latents = noise * pipeline.scheduler.init_noise_sigma
    for step, time in enumerate(pipeline.scheduler.timesteps):
        value, count = torch.zeros_like(latents), torch.zeros_like(latents[:, :1])
        for scheduler, (top, bottom, left, right) in zip(schedulers, windows, strict=True):
            here = (..., slice(top, bottom), slice(left, right))
            seen = latents[here].repeat(len(prompts), 1, 1, 1)
            if step < bootstrapping:
                picks = torch.randint(0, bootstrapping, (len(prompts) - 1,), generator=generator)
                noised = pipeline.scheduler.add_noise(backgrounds[picks], noise[here], time[None])
                seen[1:] = torch.where(masks[here][1:] > 0, seen[1:], noised)
            output = _predict(pipeline, scheduler.scale_model_input(seen, time), time, texts, prompts)
            after = scheduler.step(output, time, seen).prev_sample
            value[here] += (weights[here] * after).sum(0, keepdim=True)
            count[here] += weights[here].sum(0, keepdim=True)
        latents = value / count
    return latents


def _backgrounds(
    pipeline: StableDiffusionPipeline, count: int, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """[n, 4, h, w]: latents of flat colours."""
    colours = torch.rand((count, 3), generator=generator)
    found = [torch.zeros(0, 4, *size)]
    for colour in colours:
        image = (2.0 * colour - 1.0)[None, :, None, None].expand(1, 3, 8 * size[0], 8 * size[1])
        drawn = pipeline.vae.encode(image).latent_dist.sample(generator)
        found.append(drawn * pipeline.vae.config.scaling_factor)
    return torch.cat(found)


def _predict(
    pipeline: StableDiffusionPipeline,
    samples: Tensor,
    time: Tensor,
    texts: Sequence[tuple[Tensor, Tensor]],
    prompts: Sequence[NaivePrompt],
) -> Tensor:
    """The guided output of every prompt."""
    positive, negative = (torch.cat(parts) for parts in zip(*texts, strict=True))
    outputs = pipeline.unet(torch.cat([samples, samples]), time, torch.cat([negative, positive])).sample
    without, with_text = outputs.chunk(2)
    guidance = torch.tensor([max(prompt.guidance, 1.0) for prompt in prompts])[:, None, None, None]
    return without + guidance * (with_text - without)
