"""Prompt edits against a processor that edits whole maps in diffusers' pipelines: source and edit side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from map_processors import PROMPT, MapProcessor, level_of, with_processors, word_columns, word_spans
from runs import NEGATIVE, STEPS, diffusers_latents, rel_l2, request
from torch import Tensor

import bridle
from bridle.heat_maps import normalise_each, word_maps

TOLERANCE = 1e-4
CANVAS: dict[str, Any] = {"width": 160, "height": 128}
"""The finest level has 320 positions, more than take part in the exchange of self-attention."""
REPLACED = "a gold star left of a blue square"
REFINED = "a red circle left of a dark blue square"
Change = Callable[[Tensor, Tensor], Tensor]
"""Maps [H, N, L] of the source and of the edit itself -> the edit's."""


def replaced(pipeline: DiffusionPipeline) -> Change:
    """Word by word; behind the last replaced word every column is the source's of the same number."""
    pairs = list(zip(word_spans(pipeline, PROMPT), word_spans(pipeline, REPLACED), strict=True))
    last = max(i for i, ((old, _), (new, _)) in enumerate(pairs) if old != new)
    matrix = torch.eye(77)
    for (_, x), (_, y) in pairs[: last + 1]:
        matrix[:, y] = 0.0
        for i, row in enumerate(x):
            for j, column in enumerate(y):
                matrix[row, column] = float(i == j) if len(x) == len(y) else 1.0 / len(y)
    surplus = pairs[last][0][1][-1] - pairs[last][1][1][-1]
    assert surplus > 0
    matrix[:, 77 - surplus :] = 0.0
    return lambda source, own: source @ matrix


def refined(pipeline: DiffusionPipeline) -> Change:
    """The added word keeps its own map; the others, and the end, have the source's."""
    added = word_columns(pipeline, REFINED, "dark")
    end = word_spans(pipeline, PROMPT)[-1][1][-1] + 1
    before = list(range(added[0]))
    behind = list(range(added[0], end + 1))
    columns = before + added + behind
    partner = torch.tensor(columns + list(range(len(columns), 77)))
    own_columns = torch.zeros(77, dtype=torch.bool)
    own_columns[added] = True
    return lambda source, own: torch.where(own_columns, own, source[..., partner])


@dataclass(frozen=True)
class Plan:
    """change: of a cross-attention map. alphas: [S, 77], its share. own_steps: in which self-attention is the source's."""

    change: Change
    alphas: Tensor
    own_steps: range
    levels: int


class EditProcessor(MapProcessor):
    """Rows [uncond, uncond, source, edit]. kept: of the source and of the edit, [2, N, L], summed over steps."""

    def __init__(self, name: str, plan: Plan) -> None:
        super().__init__(name)
        self.plan, self.level = plan, level_of(name, plan.levels)
        self.kept: Tensor | float = 0.0

    def maps(self, maps: Tensor) -> Tensor:
        unconditional, source, own = maps[:2], maps[2], maps[3]
        if self.is_cross:
            alpha = self.plan.alphas[self.step]
            own = alpha * self.plan.change(source, own) + (1.0 - alpha) * own
            self.kept = self.kept + torch.stack([source, own]).mean(1)
        elif self.step in self.plan.own_steps and maps.shape[-1] <= 256:
            own = source
        return torch.cat([unconditional, source[None], own[None]])


@dataclass
class Blend:
    """The step callback of a local blend. columns: of the source's and of the edit's words."""

    processors: list[EditProcessor]
    columns: tuple[list[int], list[int]]
    threshold: float
    first_step: int
    inside: float = 0.0

    def __call__(self, _: object, step: int, __: object, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if step < self.first_step:
            return {}
        latents = state["latents"]
        height, width = latents.shape[-2:]
        size = (-(-height // 4), -(-width // 4))
        level = [p.kept for p in self.processors if p.level == 2 and not p.name.startswith("mid")]
        total = torch.stack([kept for kept in level if isinstance(kept, Tensor)]).mean(0)
        masks = []
        for words, columns in zip(total, self.columns, strict=True):
            plane = F.max_pool2d(words[:, columns].sum(1).reshape(1, 1, *size), 3, 1, 1)
            plane = F.interpolate(plane, (height, width))
            masks.append(plane / plane.max() > self.threshold)
        mask = (masks[0] | masks[1])[0].float()
        self.inside = float(mask.mean())
        return {"latents": torch.stack([latents[0], latents[0] + mask * (latents[1] - latents[0])])}


@dataclass(frozen=True)
class Pair:
    """The same model in both engines."""

    engine: bridle.Engine
    folder: Path

    def pipeline(self) -> DiffusionPipeline:
        return DiffusionPipeline.from_pretrained(self.folder)


@pytest.fixture(params=["tiny", "tiny-xl"])
def pair(
    request: pytest.FixtureRequest, folder: Path, xl_folder: Path, engine: bridle.Engine, xl_engine: bridle.Engine
) -> Pair:
    return Pair(engine, folder) if request.param == "tiny" else Pair(xl_engine, xl_folder)


def noise() -> Tensor:
    return torch.randn(1, 4, 16, 20, generator=torch.Generator().manual_seed(9))


def ours(engine: bridle.Engine, prompt: str, *attention: object, **changes: object) -> bridle.Result:
    result = engine.sample(request(prompt=prompt, attention=attention, latents=noise(), **CANVAS, **changes))
    assert isinstance(result, bridle.Result)
    return result


def theirs(pipeline: DiffusionPipeline, prompt: str, **arguments: object) -> Tensor:
    """[2, 4, h, w]: source and edit."""
    both = {"prompt": [PROMPT, prompt], "negative_prompt": [NEGATIVE] * 2, "latents": noise().repeat(2, 1, 1, 1)}
    return diffusers_latents(pipeline, **both, **CANVAS, **arguments)


def steps_of(start: float, end: float) -> slice:
    return slice(int(start * (STEPS + 1)), int(end * (STEPS + 1)))


def check(result: bridle.Result, wanted: Tensor) -> None:
    assert result.source_latents is not None
    assert rel_l2(result.source_latents, wanted[:1]) <= TOLERANCE
    assert rel_l2(result.latents, wanted[1:]) <= TOLERANCE


def levels(pipeline: DiffusionPipeline) -> int:
    return len(pipeline.unet.down_blocks)


def test_replace(pair: Pair) -> None:
    pipeline = pair.pipeline()
    alphas = torch.zeros(STEPS, 77)
    alphas[steps_of(0.0, 0.8)] = 1.0
    plan = Plan(replaced(pipeline), alphas, range(int(0.1 * STEPS), int(0.55 * STEPS)), levels(pipeline))
    with_processors(pipeline, partial(EditProcessor, plan=plan))
    wanted = theirs(pipeline, REPLACED)
    check(ours(pair.engine, REPLACED, bridle.PromptEdit(PROMPT, cross=0.8, self=(0.1, 0.55))), wanted)
    for other in (bridle.PromptEdit(PROMPT, cross=0.0, self=(0.1, 0.55)), bridle.PromptEdit(PROMPT, self=0.0)):
        assert rel_l2(ours(pair.engine, REPLACED, other).latents, wanted[1:]) > 1e-2


def test_refine_with_captured_maps(pair: Pair) -> None:
    """What is captured are the maps after the edit."""
    pipeline = pair.pipeline()
    alphas = torch.zeros(STEPS, 77)
    alphas[steps_of(0.2, 0.9)] = 1.0
    plan = Plan(refined(pipeline), alphas, range(0), levels(pipeline))
    processors = with_processors(pipeline, partial(EditProcessor, plan=plan))
    wanted = theirs(pipeline, REFINED)
    edit = bridle.PromptEdit(PROMPT, mode="refine", cross=(0.2, 0.9), self=0.0)
    result = ours(pair.engine, REFINED, edit, bridle.CaptureMaps(["circle", "dark"]))
    check(result, wanted)
    assert rel_l2(ours(pair.engine, REFINED).latents, wanted[1:]) > 1e-2
    columns = [word_columns(pipeline, REFINED, word) for word in ("circle", "dark")]
    found = []
    for level in range(plan.levels):
        size = (-(-16 // 2**level), -(-20 // 2**level))
        kept = [p.kept[1] for p in processors if p.level == level and not p.name.startswith("mid")]
        if kept:
            found.append(torch.stack(kept).sum(0).T.reshape(1, 77, *size))
    maps = normalise_each(word_maps(found, columns, (128, 160)))[0]
    for word, naive in zip(("circle", "dark"), maps, strict=True):
        assert float((torch.from_numpy(result.maps[word][0]) - naive).abs().max()) < TOLERANCE


def test_spans_of_words(engine: bridle.Engine, folder: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    alphas = torch.zeros(STEPS, 77)
    alphas[steps_of(0.0, 0.7)] = 1.0
    for word, (start, end) in {"star": (0.3, 0.5), "left": (0.0, 1.0)}.items():
        columns = word_columns(pipeline, REPLACED, word)
        alphas[:, columns] = 0.0
        alphas[steps_of(start, end), columns[0] : columns[-1] + 1] = 1.0
    plan = Plan(replaced(pipeline), alphas, range(int(0.4 * STEPS)), levels(pipeline))
    with_processors(pipeline, partial(EditProcessor, plan=plan))
    wanted = theirs(pipeline, REPLACED)
    cross: dict[str, float | tuple[float, float]] = {"default_": 0.7, "star": (0.3, 0.5), "left": 1.0}
    check(ours(engine, REPLACED, bridle.PromptEdit(PROMPT, cross=cross)), wanted)
    assert rel_l2(ours(engine, REPLACED, bridle.PromptEdit(PROMPT, cross=0.7)).latents, wanted[1:]) > 3e-3


def test_local_blend(pair: Pair) -> None:
    pipeline = pair.pipeline()
    alphas = torch.zeros(STEPS, 77)
    alphas[steps_of(0.0, 0.5)] = 1.0
    plan = Plan(replaced(pipeline), alphas, range(int(0.4 * STEPS)), levels(pipeline))
    processors = with_processors(pipeline, partial(EditProcessor, plan=plan))
    columns = word_columns(pipeline, PROMPT, "circle"), word_columns(pipeline, REPLACED, "star")
    blend = Blend([p for p in processors if isinstance(p, EditProcessor)], columns, 0.97, int(0.2 * STEPS))
    wanted = theirs(pipeline, REPLACED, callback_on_step_end=blend)
    local = bridle.LocalBlend("star", "circle", threshold=0.97, start=0.2)
    assert 0.05 < blend.inside < 0.95
    check(ours(pair.engine, REPLACED, bridle.PromptEdit(PROMPT, cross=0.5, local_blend=local)), wanted)
    assert rel_l2(ours(pair.engine, REPLACED, bridle.PromptEdit(PROMPT, cross=0.5)).latents, wanted[1:]) > 1e-2


@pytest.mark.parametrize("scheduler", [None, "euler a"])
def test_the_source_is_the_image_of_its_prompt(pair: Pair, scheduler: str | None) -> None:
    """Both have the same noise: an edit that changes nothing is the source again."""
    changes = {"scheduler": scheduler, "num_inference_steps": 5, "num_images": 2, "seed": [3, 8], **CANVAS}
    edit = bridle.PromptEdit(PROMPT, cross=0.9, local_blend=bridle.LocalBlend("star", "circle", threshold=0.5))
    edited, plain, same = (
        pair.engine.sample(request(prompt=prompt, attention=attention, **changes))
        for prompt, attention in ((REPLACED, [edit]), (PROMPT, []), (PROMPT, [bridle.PromptEdit(PROMPT)]))
    )
    for result in (edited, plain, same):
        assert isinstance(result, bridle.Result)
    assert torch.equal(edited.source_latents, plain.latents)
    assert rel_l2(edited.latents, plain.latents) > 1e-2
    assert rel_l2(same.latents, plain.latents) <= TOLERANCE
