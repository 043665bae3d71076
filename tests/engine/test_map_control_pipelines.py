"""Reweighted, injected and captured maps against processors that change whole maps in diffusers' pipelines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from map_processors import PROMPT, MapProcessor, cell_means, level_of, with_processors, word_columns
from runs import STEPS, diffusers_latents, picture, rel_l2, request
from torch import Tensor

import bridle
from bridle.heat_maps import normalise_each, word_maps

TOLERANCE = 1e-4
HEIGHT, WIDTH = 104, 160
CANVAS: dict[str, Any] = {"height": HEIGHT, "width": WIDTH}
"""Levels of 13 x 20, 7 x 10, 4 x 5 and 2 x 3 cells."""
FLOOR = 0.02
Edit = Callable[[Tensor, "ChangingProcessor"], Tensor]
"""Of the conditional row's scores or maps [H, N, L]; the layer is for its name, level and step."""


@dataclass(frozen=True)
class Edits:
    """What all layers do, in this order. levels: of the U-Net."""

    levels: int
    scores: Sequence[Edit] = field(default_factory=list)
    maps: Sequence[Edit] = field(default_factory=list)


class ChangingProcessor(MapProcessor):
    """Changes the map of the conditional row. kept: its mean over heads after that, [S, N, L]."""

    def __init__(self, name: str, edits: Edits) -> None:
        super().__init__(name)
        self.edits, self.level = edits, level_of(name, edits.levels)
        self.kept: list[Tensor] = []

    @property
    def done(self) -> float:
        return self.step / STEPS

    def scores(self, scores: Tensor) -> Tensor:
        return self._changed(scores, self.edits.scores)

    def maps(self, maps: Tensor) -> Tensor:
        changed = self._changed(maps, self.edits.maps)
        self.kept.append(changed[1].mean(0))
        return changed

    def _changed(self, values: Tensor, edits: Sequence[Edit]) -> Tensor:
        if not self.is_cross:
            return values
        conditional = values[1].clone()
        for edit in edits:
            conditional = edit(conditional, self)
        return torch.stack([values[0], conditional])


def is_on(layer: ChangingProcessor, start: float, end: float) -> bool:
    """Whether the whole of the current step is between two fractions of the run."""
    return layer.done >= start and (layer.step + 1) / STEPS <= end


def reweighted(columns: list[int], factor: float, start: float = 0.0, end: float = 1.0) -> Edit:
    def edit(maps: Tensor, layer: ChangingProcessor) -> Tensor:
        if is_on(layer, start, end):
            maps[..., columns] *= factor
        return maps

    return edit


def biased(columns: list[int], canvas: Tensor, strength: float, layers: str = "", end: float = 1.0) -> Edit:
    """The words' attention times (m / mean m) ** strength before the normalisation, as a sum of logarithms."""

    def edit(scores: Tensor, layer: ChangingProcessor) -> Tensor:
        if is_on(layer, 0.0, end) and layer.name.startswith(layers):
            lifted = FLOOR + (1.0 - FLOOR) * cell_means(canvas, 8 * 2**layer.level)
            mean = FLOOR + (1.0 - FLOOR) * canvas.mean()
            scores[..., columns] += strength * torch.log(lifted / mean)[:, None]
        return scores

    return edit


def shifted(columns: list[int], canvas: Tensor, share: float, layers: str = "", end: float = 1.0) -> Edit:
    """A share of the words' whole attention is laid out as the map says, head by head."""

    def edit(maps: Tensor, layer: ChangingProcessor) -> Tensor:
        if is_on(layer, 0.0, end) and layer.name.startswith(layers):
            window = cell_means(canvas, 8 * 2**layer.level)
            window = window / window.sum()
            words = maps[..., columns]
            maps[..., columns] = (1.0 - share) * words + share * window[:, None] * words.sum(1, keepdim=True)
        return maps

    return edit


def ramp() -> np.ndarray:
    """Falls from the top to the bottom, to 0 in the last fifth."""
    rows = np.clip(np.linspace(1.0, -0.25, HEIGHT, dtype=np.float32), 0.0, 1.0)
    return np.tile(rows[:, None], (1, WIDTH))


BOX = (0.1, 0.25, 0.55, 1.0)


def box_pixels() -> Tensor:
    """Pixels whose centre is inside."""
    y, x = (torch.arange(HEIGHT) + 0.5) / HEIGHT, (torch.arange(WIDTH) + 0.5) / WIDTH
    return (((y >= BOX[1]) & (y < BOX[3]))[:, None] & ((x >= BOX[0]) & (x < BOX[2]))).float()


@dataclass(frozen=True)
class Pair:
    """The same model in both engines."""

    engine: bridle.Engine
    pipeline: DiffusionPipeline

    def columns(self, *words: str) -> list[int]:
        return word_columns(self.pipeline, PROMPT, *words)

    def theirs(
        self, scores: Sequence[Edit] = (), maps: Sequence[Edit] = (), **arguments: object
    ) -> tuple[Tensor, list[ChangingProcessor]]:
        """Latents, and the processors of the cross-attentions."""
        edits = Edits(len(self.pipeline.unet.down_blocks), scores, maps)
        processors = with_processors(self.pipeline, partial(ChangingProcessor, edits=edits))
        latents = diffusers_latents(self.pipeline, prompt=PROMPT, **CANVAS, **arguments)
        return latents, [p for p in processors if isinstance(p, ChangingProcessor)]

    def ours(self, *attention: object, **changes: object) -> bridle.Result:
        result = self.engine.sample(request(prompt=PROMPT, attention=attention, **CANVAS, **changes))
        assert isinstance(result, bridle.Result)
        return result

    def check(self, theirs: Tensor, *attention: object) -> None:
        assert rel_l2(self.ours(*attention).latents, theirs) <= TOLERANCE
        assert rel_l2(self.ours().latents, theirs) > 1e-2


@pytest.fixture(params=["tiny", "tiny-xl"])
def pair(
    request: pytest.FixtureRequest, folder: Path, xl_folder: Path, engine: bridle.Engine, xl_engine: bridle.Engine
) -> Pair:
    own, runner = (folder, engine) if request.param == "tiny" else (xl_folder, xl_engine)
    return Pair(runner, DiffusionPipeline.from_pretrained(own))


def test_reweight(pair: Pair) -> None:
    """The factors of words that two entries name multiply; "a" stands twice in the prompt."""
    edits = [
        reweighted(pair.columns("circle", "a"), 4.0, 0.1, 0.6),
        reweighted(pair.columns("a"), -2.0),
    ]
    theirs, _ = pair.theirs(maps=edits)
    pair.check(theirs, bridle.Reweight(["circle", "a"], 4.0, start=0.1, end=0.6), bridle.Reweight("a", -2.0))


def test_injected_bias(pair: Pair) -> None:
    edits = [
        biased(pair.columns("circle", "red"), torch.from_numpy(ramp()), 3.0, end=0.7),
        biased(pair.columns("square"), box_pixels(), 1.0, "up_blocks.1"),
    ]
    theirs, _ = pair.theirs(scores=edits)
    pair.check(
        theirs,
        bridle.InjectMap(["circle", "red"], ramp(), strength=3.0, end=0.7),
        bridle.InjectMap("square", box=BOX, layers=["up_blocks.1"]),
    )


def test_injected_mass(pair: Pair) -> None:
    edits = [
        shifted(pair.columns("circle", "red"), torch.from_numpy(ramp()), 0.9, end=0.7),
        shifted(pair.columns("square", "of", "a"), box_pixels(), 1.0, "up_blocks"),
    ]
    theirs, _ = pair.theirs(maps=edits)
    pair.check(
        theirs,
        bridle.InjectMap(["circle", "red"], ramp(), strength=0.9, mode="mass", end=0.7),
        bridle.InjectMap(["square", "of", "a"], box=BOX, mode="mass", layers="up"),
    )


def naive_maps(
    pair: Pair, processors: Sequence[ChangingProcessor], words: Sequence[str], steps: Sequence[int] = range(STEPS)
) -> Tensor:
    """[W, H, W'] of the captured maps of some layers and steps."""
    columns = [pair.columns(*word.split()) for word in words]
    found: dict[int, Tensor] = {}
    for processor in processors:
        sizes = (-(-HEIGHT // (8 * 2**processor.level)), -(-WIDTH // (8 * 2**processor.level)))
        total = torch.stack([processor.kept[step] for step in steps]).sum(0).T.reshape(1, 77, *sizes)
        found[processor.level] = found.get(processor.level, torch.zeros(())) + total
    return normalise_each(word_maps(list(found.values()), columns, (HEIGHT, WIDTH)))[0]


def assert_maps(result: bridle.Result, words: Sequence[str], wanted: Tensor) -> None:
    for word, naive in zip(words, wanted, strict=True):
        got = torch.from_numpy(result.maps[word][0])
        assert got.shape == naive.shape
        assert float((got - naive).abs().max()) < TOLERANCE, word
        assert float(naive.max() - naive.min()) > 0.05, "void case: a flat map"


def is_outer(processor: ChangingProcessor) -> bool:
    """Whether a layer takes part where no layers are named."""
    return not processor.name.startswith("mid")


def test_captured_maps(pair: Pair) -> None:
    latents, processors = pair.theirs()
    words = ["circle", "blue square", "a"]
    result = pair.ours(bridle.CaptureMaps(words))
    assert rel_l2(result.latents, latents) <= TOLERANCE
    assert torch.equal(result.latents, pair.ours().latents)
    assert_maps(result, words, naive_maps(pair, list(filter(is_outer, processors)), words))


def test_chosen_maps(pair: Pair) -> None:
    """Every choice of sites and steps, from one run of the naive method."""
    _, processors = pair.theirs()
    whole = naive_maps(pair, list(filter(is_outer, processors)), ["circle"])
    chosen: dict[str, tuple[Any, Callable[[ChangingProcessor], bool], Sequence[int]]] = {
        "resolution": (10, lambda p: is_outer(p) and p.level == 1, range(STEPS)),
        "steps": ([0, 3, 19], is_outer, [0, 3, 19]),
        "layers": (["mid", "up_blocks.1"], lambda p: p.name.startswith(("mid", "up_blocks.1")), range(STEPS)),
    }
    for choice, (value, takes, steps) in chosen.items():
        own = naive_maps(pair, [p for p in processors if takes(p)], ["circle"], steps)
        assert_maps(pair.ours(bridle.CaptureMaps("circle", **{choice: value})), ["circle"], own)
        assert float((own - whole).abs().max()) > 1e-2, choice


def test_all_at_once(pair: Pair) -> None:
    """The bias comes before the softmax, then the mass, then the factors; what is captured comes after all of them."""
    circle, square, both = pair.columns("circle"), pair.columns("square"), pair.columns("square", "circle")
    latents, processors = pair.theirs(
        scores=[biased(circle, box_pixels(), 2.0)],
        maps=[shifted(square, torch.from_numpy(ramp()), 0.8), reweighted(both, 2.5, 0.0, 0.5)],
    )
    controls = [
        bridle.Reweight(["square", "circle"], 2.5, end=0.5),
        bridle.InjectMap("square", ramp(), mode="mass", strength=0.8),
        bridle.CaptureMaps(["circle", "square"]),
        bridle.InjectMap("circle", box=BOX, strength=2.0),
    ]
    pair.check(latents, *controls)
    wanted = naive_maps(pair, list(filter(is_outer, processors)), ["circle", "square"])
    assert_maps(pair.ours(*controls), ["circle", "square"], wanted)


def test_images_of_a_batch_have_their_own_maps(pair: Pair) -> None:
    """Two images of two requests with other sizes and words, against each alone."""
    capture = bridle.CaptureMaps(["circle", "square"])
    first = request(prompt=PROMPT, attention=[capture], num_images=2, num_inference_steps=3, **CANVAS)
    second = request(
        prompt=PROMPT, attention=[bridle.CaptureMaps("a")], image=picture(), strength=0.9, num_inference_steps=4
    )
    together = pair.engine.sample([first, second])
    assert isinstance(together, list)
    for own, result in zip((first, second), together, strict=True):
        alone = pair.engine.sample(own)
        assert isinstance(alone, bridle.Result)
        assert alone.maps.keys() == result.maps.keys()
        for word, maps in alone.maps.items():
            assert np.array_equal(maps, result.maps[word]), word
    maps = together[0].maps["circle"]
    assert maps.shape == (2, HEIGHT, WIDTH) and np.abs(maps[0] - maps[1]).max() > 1e-2
