"""Stage two: the text encoder and the U-Net, trained together on the latents of the scenes."""

from __future__ import annotations

import copy
import os
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from captions import can_relate, describe
from sheets import save_sheet
from stage import Stage
from tokenizer import MAX_TOKENS, build_tokenizer
from world import SIZE, seeded_scene

WIDTH = 128
"""Of the text features."""
CHANNELS = (64, 128, 160)
CAPTIONS_PER_SCENE = 4
CAPTION_DROPOUT = 0.1
RELATION_REPEATS = 5
"""How much more often than others a scene is drawn whose captions may state a relation."""
UNIFORM_TIMESTEPS = 0.4
"""Share of the time steps that are drawn evenly."""
SHEET_PROMPTS = (
    "a red circle left of a blue star",
    "a green square above a yellow heart",
    "three purple triangles on a gray background",
    "a large orange ring",
    "a pink crescent and a cyan cross",
    "two small blue hearts",
    "a yellow star right of a green circle",
    "a red cross below a purple ring on a blue background",
)


PreTrained = AutoencoderKL | ControlNetModel | T2IAdapter | UNet2DConditionModel | CLIPTextModel


class Denoiser(nn.Module):
    """The text encoder and the U-Net as one module."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer()
        end = self.tokenizer.eos_token_id
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=SIZE // 8,
            block_out_channels=CHANNELS,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=32,
        )

    def tokens(self, prompts: list[str]) -> Tensor:
        """[n, 77] int64."""
        return self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it is safe."""
    return torch.autocast(device.type, torch.bfloat16)


def choose_attention(network: UNet2DConditionModel | ControlNetModel | CLIPTextModel, device: torch.device) -> None:
    """On CPUs attention is two products and a softmax: the fused one makes a bfloat16 step half as long again there."""
    if device.type != "cpu":
        return
    if isinstance(network, CLIPTextModel):
        network.set_attn_implementation("eager")
    else:
        network.set_attn_processor(AttnProcessor())


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of training and, with trailing steps, of sampling."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )


def caption_tokens(count: int, path: Path) -> npt.NDArray[np.int16]:
    """[count, captions, 77], several captions of every training scene, kept in a file."""
    if not path.exists():
        with get_context("fork").Pool(os.cpu_count()) as pool:
            ids = np.stack(list(pool.imap(_token_ids, range(count), chunksize=100)))
        np.save(path.with_suffix(".partial.npy"), ids)
        path.with_suffix(".partial.npy").rename(path)
    loaded: npt.NDArray[np.int16] = np.load(path)
    return loaded


def _token_ids(seed: int) -> npt.NDArray[np.int16]:
    """[captions, 77]."""
    scene, rng = seeded_scene(seed), np.random.default_rng((seed, 1))
    texts = [describe(scene, rng).text for _ in range(CAPTIONS_PER_SCENE)]
    ids = _tokenizer()(texts, padding="max_length", truncation=True, return_tensors="np").input_ids
    return np.asarray(ids, np.int16)


_tokenizer = cache(build_tokenizer)


def drawing_pool(count: int) -> npt.NDArray[np.int64]:
    """Indices of the training scenes, to be drawn evenly: a scene with a relation is in it several times.

    Which object is to be left of which is what a small network learns last.
    """
    with get_context("fork").Pool(os.cpu_count()) as pool:
        relating = np.asarray(pool.map(_relates, range(count), chunksize=500))
    return np.repeat(np.arange(count), np.where(relating, RELATION_REPEATS, 1))


def _relates(seed: int) -> bool:
    return can_relate(seeded_scene(seed))


def draw_timesteps(size: int, device: torch.device) -> Tensor:
    """[size] int64 in 0..999: a part everywhere, the rest around the middle, where shapes appear (arXiv 2403.03206, 3.1)."""
    logit_normal = torch.sigmoid(0.8 * torch.randn(size, device=device))
    even = torch.rand(size, device=device)
    share = torch.where(torch.rand(size, device=device) < UNIFORM_TIMESTEPS, even, logit_normal)
    return (1000 * share).long().clamp(max=999)


class NoisyBatches:
    """Random latents with noise and captions; the velocity target of progressive distillation (arXiv 2202.00512).

    Everything lies on the device and is drawn there, so that a GPU never waits.
    """

    def __init__(
        self, denoiser: Denoiser, latents: Tensor, scale: float, tokens: npt.NDArray[np.int16], device: torch.device
    ) -> None:
        self.latents, self.scale, self.device = latents.to(device), scale, device
        self.tokens = torch.from_numpy(tokens).to(device)
        self.pool = torch.from_numpy(drawing_pool(len(latents))).to(device)
        self.scheduler = build_scheduler()
        self.empty = denoiser.tokens([""])[0].to(device)

    def draw(self, size: int, dropout: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Scene indices, noisy latents, timesteps, tokens [size, 77], target velocity. dropout: share of empty captions."""
        indices = self.pool[torch.randint(len(self.pool), (size,), device=self.device)]
        clean = self.latents[indices].float() * self.scale
        noise = torch.randn_like(clean)
        timesteps = draw_timesteps(size, self.device)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        target = self.scheduler.get_velocity(clean, noise, timesteps)
        tokens = self.tokens[indices, torch.randint(CAPTIONS_PER_SCENE, (size,), device=self.device)].long()
        dropped = torch.rand(size, 1, device=self.device) < dropout
        return indices, noisy, timesteps, torch.where(dropped, self.empty, tokens), target


def build_pipeline(autoencoder: AutoencoderKL, denoiser: Denoiser) -> StableDiffusionPipeline:
    """The diffusers pipeline of the parts."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text_encoder,
        tokenizer=denoiser.tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def denoiser_stage(
    denoiser: Denoiser, batches: NoisyBatches, autoencoder: AutoencoderKL, minutes: float, batch: int, export: Path
) -> Stage:
    """Training of text encoder and U-Net; every sheet also rewrites the exported pipeline."""

    def loss(rng: np.random.Generator, share: float) -> Tensor:
        _, noisy, timesteps, tokens, target = batches.draw(batch, CAPTION_DROPOUT)
        with half_precision(noisy.device):
            context = denoiser.text_encoder(tokens).last_hidden_state
            output = denoiser.unet(noisy, timesteps, context).sample
        return functional.mse_loss(output.float(), target)

    def show(path: Path) -> None:
        pipeline = build_pipeline(autoencoder, denoiser)
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in range(2 * len(SHEET_PROMPTS))]
        prompts = [prompt for prompt in SHEET_PROMPTS for _ in range(2)]
        images = pipeline(
            prompts, guidance_scale=5.0, num_inference_steps=25, generator=generators, output_type="np"
        ).images
        save_sheet(path, (images * 255).round().astype(np.uint8), columns=8)
        export_pipeline(pipeline, export)

    return Stage(
        "denoiser", minutes, denoiser, loss, show, learning_rate=7e-4, batch=batch, repeats=True, show_every=600.0
    )


def export_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """float16 safetensors in diffusers' layout."""
    parts = {"unet": pipeline.unet, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder}
    pipeline.save_pretrained(folder)
    for name, module in parts.items():
        export_half(module, folder / name)


def export_half(module: PreTrained, folder: Path) -> None:
    """A float16 copy; a recorded training step knows the module's own memory, so that stays where it is."""
    copy.deepcopy(module).half().save_pretrained(folder)
