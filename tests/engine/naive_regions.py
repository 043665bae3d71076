"""MultiDiffusion with regions, written out: a scheduler for every view, a prediction for every prompt, whole masks."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
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
    pipeline: DiffusionPipeline,
    prompts: Sequence[NaivePrompt],
    windows: Sequence[Window],
    *,
    steps: int,
    bootstrapping: int,
    seed: int,
) -> Tensor:
    """[1, 4, h, w]. prompts: that of the background first. Draws from one generator in the official order."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.stack([p.mask for p in prompts])[:, None]
    weights = torch.tensor([p.weight for p in prompts])[:, None, None, None] * masks
    guidance = torch.tensor([max(p.guidance, 1.0) for p in prompts])[:, None, None, None]
    texts = _texts(pipeline, prompts, (8 * masks.shape[-2], 8 * masks.shape[-1]))
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
            output = _predict(pipeline, scheduler.scale_model_input(seen, time), time, texts, guidance)
            after = scheduler.step(output, time, seen).prev_sample
            value[here] += (weights[here] * after).sum(0, keepdim=True)
            count[here] += weights[here].sum(0, keepdim=True)
        latents = value / count
    return latents


def _backgrounds(pipeline: DiffusionPipeline, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """[n, 4, h, w]: latents of flat colours."""
    colours = torch.rand((count, 3), generator=generator)
    found = [torch.zeros(0, 4, *size)]
    for colour in colours:
        image = (2.0 * colour - 1.0)[None, :, None, None].expand(1, 3, 8 * size[0], 8 * size[1])
        drawn = pipeline.vae.encode(image).latent_dist.sample(generator)
        found.append(drawn * pipeline.vae.config.scaling_factor)
    return torch.cat(found)


def _texts(pipeline: DiffusionPipeline, prompts: Sequence[NaivePrompt], size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of the U-Net for the negative prompts and then the prompts. size: (height, width) of the canvas."""
    arguments = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    encoded = [pipeline.encode_prompt(prompt=p.prompt, negative_prompt=p.negative, **arguments) for p in prompts]
    positive, negative, *pooled = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    if not pooled:
        return {"encoder_hidden_states": torch.cat([negative, positive])}
    times = torch.tensor([[*size, 0, 0, *size]]).repeat(2 * len(prompts), 1)
    return {
        "encoder_hidden_states": torch.cat([negative, positive]),
        "added_cond_kwargs": {"text_embeds": torch.cat(pooled[::-1]), "time_ids": times},
    }


def _predict(
    pipeline: DiffusionPipeline, samples: Tensor, time: Tensor, texts: dict[str, Any], guidance: Tensor
) -> Tensor:
    """The guided output of every prompt."""
    without, with_text = pipeline.unet(torch.cat([samples, samples]), time, **texts).sample.chunk(2)
    return without + guidance * (with_text - without)
