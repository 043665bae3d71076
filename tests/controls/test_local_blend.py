"""Local blend against the official pipeline, which is run here with edits of whole maps, and by its definition."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from ptp_cases import allowed, clip_tokenizer, config, encode, tensors
from torch import Tensor

from bridle.controls.local_blend import blend, blend_level, blend_mask, blend_ratio
from bridle.controls.prompt_alignment import cross_alphas, premix, replacement_mapper, self_steps
from bridle.networks.configs import UNetConfig
from bridle.networks.trunk import Site, attention_sites
from bridle.prompts import word_columns

CASE = "public-pipeline-replace-blend"
CONFIG = config(CASE)
OUTPUTS = tensors(CASE, "outputs")
STEPS = CONFIG["steps"]
MAX_SELF_QUERIES = 256


def sites_at(*levels: int, mid: int | None = None) -> list[Site]:
    names = [Site(f"down_blocks.{level}.attentions.0", level, 1, 8) for level in levels]
    return names if mid is None else [*names, Site("mid_block.attentions.0", mid, 1, 8)]


def test_maps_come_from_a_quarter_of_the_latent() -> None:
    assert blend_level(sites_at(0, 1, 2, mid=3)) == 2
    assert blend_level(sites_at(1, 2, mid=2)) == 2
    assert blend_level(sites_at(0, 1, mid=2)) == 1
    assert blend_level(sites_at(0, 1, 2, 3, mid=3)) == 2
    assert blend_level(sites_at(3, mid=3)) == 3
    assert blend_level(sites_at(mid=2)) == 2


def naive_ratio(maps: Tensor, size: tuple[int, int]) -> Tensor:
    total = maps.sum(0)
    height, width = total.shape
    found = torch.empty(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * height // size[0], j * width // size[1]
            found[i, j] = total[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()
    return found / found.max()


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (9, 5)])
def test_ratio_by_its_definition(size: tuple[int, int]) -> None:
    level = (-(-size[0] // 4), -(-size[1] // 4))
    maps = torch.rand((2, 3, *level), generator=torch.Generator().manual_seed(size[0]))
    found = blend_ratio(maps, size)
    assert found.shape == (2, *size)
    torch.testing.assert_close(found[1], naive_ratio(maps[1], size), rtol=1e-6, atol=0)
    torch.testing.assert_close(blend_ratio(1e-6 * maps, size), found, rtol=1e-5, atol=0)


def test_mask_is_either_prompts() -> None:
    source, edit = torch.zeros(1, 8, 8), torch.zeros(2, 8, 8)
    source[0, 1, 1], edit[0, 6, 6], edit[1, 6, 2] = 5.0, 1.0, 0.29
    mask = blend_mask(source, edit, (8, 8))
    expected = torch.zeros(8, 8)
    expected[0:3, 0:3] = expected[5:8, 5:8] = 1.0
    assert torch.equal(mask, expected)
    expected[5:8, 1:4] = 1.0
    assert torch.equal(blend_mask(source, edit, (8, 8), threshold=0.28), expected)


def test_words_that_look_nowhere_leave_the_source() -> None:
    assert torch.equal(blend_mask(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), (16, 16)), torch.zeros(16, 16))


def test_blend_is_exact_at_both_ends() -> None:
    random = torch.Generator().manual_seed(1)
    source, edit = torch.randn(2, 3, 4, 8, 8, generator=random)
    edit *= 1e3
    mask = (torch.rand(3, 8, 8, generator=random) > 0.5).float()
    wanted = torch.where(mask[:, None] > 0, edit, source)
    assert torch.equal(blend(source, edit, mask), wanted)
    quarter = blend(source.double(), edit.double(), torch.full((3, 8, 8), 0.25))
    torch.testing.assert_close(quarter, 0.75 * source.double() + 0.25 * edit.double(), rtol=1e-12, atol=1e-9)


@dataclass
class Edit:
    """Edits the maps of a [uncond, uncond, source, edit] batch in place and keeps the 16x16 cross maps, summed."""

    step: int = 0
    kept: list[Tensor] = field(default_factory=lambda: [torch.zeros(256, 77) for _ in range(2)])

    def __post_init__(self) -> None:
        tokenizer = clip_tokenizer(CASE)
        source, edit = (encode(tokenizer, prompt) for prompt in CONFIG["prompts"])
        arguments = CONFIG["controller_arguments"]
        windows = dict(arguments["n_cross_replace"])
        default = (0.0, windows.pop("default_"))
        words = [(word_columns(tokenizer, edit, [word])[word], tuple(w)) for word, w in windows.items()]
        self.mix = premix(replacement_mapper(tokenizer, source, edit), cross_alphas(STEPS, 77, default, words))
        self.self_steps = self_steps(STEPS, (0.0, arguments["n_self_replace"]))
        self.columns = [
            list(word_columns(tokenizer, tokens, group)[group[0]])
            for tokens, group in zip((source, edit), arguments["local_blend_words"], strict=True)
        ]

    def cross(self, maps: Tensor) -> Tensor:
        source, own = maps[2], maps[3]
        edited = source @ self.mix.mapper * self.mix.source[self.step] + own * self.mix.own[self.step]
        maps = torch.cat([maps[:3], edited[None]])
        if maps.shape[-2] == 256:
            self.kept = [kept + new.sum(0) for kept, new in zip(self.kept, maps[2:], strict=True)]
        return maps

    def own(self, maps: Tensor) -> Tensor:
        if self.step not in self.self_steps or maps.shape[-2] > MAX_SELF_QUERIES:
            return maps
        return maps[torch.tensor([0, 1, 2, 2])]

    def blend_maps(self) -> list[Tensor]:
        return [kept.T[columns].reshape(-1, 16, 16) for kept, columns in zip(self.kept, self.columns, strict=True)]


@dataclass
class MapProcessor:
    """Attention that holds its maps [rows, heads, N, L] and lets an edit change them."""

    edit: Edit

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in projected)
        maps = (q @ k.mT * attn.scale).softmax(-1)
        maps = self.edit.own(maps) if encoder_hidden_states is None else self.edit.cross(maps)
        out: Tensor = attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))
        return out


@torch.no_grad()
def steps_of_the_pipeline() -> Iterator[tuple[Edit, Tensor]]:
    """The edit's state and the solver's output [2, 4, 32, 32] at each step; each continues from the vectors."""
    unet = UNet2DConditionModel.from_config(CONFIG["unet"])
    unet.load_state_dict({name: tensor.float() for name, tensor in tensors(CASE, "weights").items()})
    edit = Edit()
    unet.set_attn_processor(MapProcessor(edit))
    scheduler = DDIMScheduler.from_config(CONFIG["scheduler"])
    scheduler.set_timesteps(STEPS)
    inputs = tensors(CASE, "inputs")
    context = torch.cat([inputs["negative_prompt_embeds"], inputs["prompt_embeds"]])
    latents = inputs["latents"]
    for step, time in enumerate(scheduler.timesteps):
        edit.step = step
        negative, positive = unet(torch.cat([latents] * 2), time, context).sample.chunk(2)
        eps = negative + CONFIG["guidance_scale"] * (positive - negative)
        yield edit, scheduler.step(eps, time, latents).prev_sample
        latents = OUTPUTS[f"step{step}.latents"]


def test_blend_is_the_official_one() -> None:
    assert blend_level(attention_sites(UNetConfig.from_dict(CONFIG["unet"], "config.json"))) == 1
    blended = 0.0
    for step, (edit, latents) in enumerate(steps_of_the_pipeline()):
        near = f"step{step}."
        assert_near(near + "latents_before_blend", latents)
        source, own = edit.blend_maps()
        ratios = torch.stack([blend_ratio(source, (32, 32)), blend_ratio(own, (32, 32))])
        assert_near(near + "blend_ratio", ratios[:, None])
        mask = blend_mask(source, own, (32, 32))
        official = (OUTPUTS[near + "blend_mask_u8"][:, 0] > 0).any(0)
        sure = ((OUTPUTS[near + "blend_ratio"] - 0.3).abs() > 1e-3).all(0)[0]
        assert torch.equal(mask[sure] > 0, official[sure])
        before = OUTPUTS[near + "latents_before_blend"]
        assert_near(near + "latents", torch.stack([before[0], blend(before[0], before[1], official.float())]))
        blended = max(blended, float((OUTPUTS[near + "latents"] - before).abs().max()))
    assert blended > 1.0


def assert_near(name: str, found: Tensor) -> None:
    assert found.shape == OUTPUTS[name].shape
    assert float((found - OUTPUTS[name]).abs().max()) <= allowed(CASE, name), name
