"""Bad maps, regions, views and image prompts: one typed error that names the field, before any network runs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from control_cases import PROMPT, SOURCE, Changes, asked
from runs import half_mask, picture
from watched_ops import RefusingOps

import bridle
from bridle.errors import LimitError, ModelLoadError, RequestError

BOX = (0.0, 0.0, 0.5, 1.0)
NAN_MAP = np.full((16, 16), np.nan, np.float32)
EMPTY = np.zeros((16, 16), np.float32)
SPOT = np.zeros((48, 64), np.float32)
SPOT[9, 9] = 1.0
"""One pixel of the image that is the first of no latent cell, and nearest to the middle of none."""

Make = Callable[[], Changes]


@pytest.fixture(scope="module")
def idle_engine(map_folder: Path) -> bridle.Engine:
    """An engine in which any network call fails the test."""
    engine = bridle.load(map_folder, backend="reference")
    engine.backend.ops = RefusingOps()
    return engine


def one_map(kind: Any, *arguments: Any, **fields: Any) -> Make:
    """A request with one entry of `attention`."""
    return lambda: {"attention": [kind(*arguments, **fields)]}


def one_region(mode: str = "attention", **fields: Any) -> Make:
    """A request with a good region, and another one."""
    good = bridle.Region("a ring", (0.0, 0.0, 1.0, 1.0))
    return lambda: {"regions": [good, bridle.Region("a star", **fields)], "region_mode": mode}


def image_prompt(**fields: Any) -> Make:
    """A request with one image prompt."""
    return lambda: {"controls": [bridle.ImagePrompt(**{"model": "ip-adapter", "image": picture(), **fields})]}


def edit(source: Any = SOURCE, **fields: Any) -> Make:
    """A request with one prompt edit."""
    return one_map(bridle.PromptEdit, source, **fields)


def blend(*arguments: Any, **fields: Any) -> Make:
    """A request with a local blend."""
    return lambda: {"attention": [bridle.PromptEdit(SOURCE, local_blend=bridle.LocalBlend(*arguments, **fields))]}


def views(*arguments: Any, **fields: Any) -> Make:
    """A request with views."""
    return lambda: {"views": bridle.Views(*arguments, **fields)}


def inject(*arguments: Any, **fields: Any) -> Make:
    """A request with one injected map."""
    return one_map(bridle.InjectMap, *arguments, **fields)


def two_masses(first: float, second: float, **fields: Any) -> Make:
    """A request with two maps of one word."""
    return lambda: {
        "attention": [
            bridle.InjectMap("red circle", box=BOX, mode="mass", strength=first),
            bridle.InjectMap("circle", half_mask(64), mode="mass", strength=second, **fields),
        ]
    }


WORDS: list[tuple[str, Make]] = [
    ("CaptureMaps.words[1]", one_map(bridle.CaptureMaps, ["circle", "star"])),
    ("CaptureMaps.words[0]", one_map(bridle.CaptureMaps, "circ")),
    ("CaptureMaps.words[0]", one_map(bridle.CaptureMaps, "circle red")),
    ("CaptureMaps.words", one_map(bridle.CaptureMaps, [])),
    ("CaptureMaps.words", one_map(bridle.CaptureMaps, " ")),
    ("CaptureMaps.words", one_map(bridle.CaptureMaps, 3)),
    ("CaptureMaps.words", one_map(bridle.CaptureMaps, ["red", "red"])),
    ("CaptureMaps.words[0]", one_map(bridle.CaptureMaps, [None])),
    ("CaptureMaps.words[0]", one_map(bridle.CaptureMaps, "\ud800")),
    ("Reweight.words[0]", one_map(bridle.Reweight, "star", 2.0)),
    ("InjectMap.words[0]", inject("star", box=BOX)),
    ("LocalBlend.words[0]", blend("star", "circle")),
    ("LocalBlend.source_words[0]", blend("circle", "star")),
    ("LocalBlend.words", blend([])),
    ("PromptEdit.cross[0]", edit(cross={"default_": 0.5, "star": 0.2})),
    ("attention", lambda: {"attention": [bridle.CaptureMaps(["red", "circle"]), bridle.CaptureMaps("circle")]}),
]

MAPS: list[tuple[str, Make]] = [
    ("CaptureMaps.resolution", one_map(bridle.CaptureMaps, "red", resolution=7)),
    ("CaptureMaps.resolution", one_map(bridle.CaptureMaps, "red", resolution=0)),
    ("CaptureMaps.resolution", one_map(bridle.CaptureMaps, "red", resolution=8, layers=["mid"])),
    ("CaptureMaps.layers[1]", one_map(bridle.CaptureMaps, "red", layers=["up", "middle"])),
    ("CaptureMaps.layers[0]", one_map(bridle.CaptureMaps, "red", layers=["up_blocks.9"])),
    ("CaptureMaps.layers", one_map(bridle.CaptureMaps, "red", layers=[])),
    ("CaptureMaps.steps[1]", one_map(bridle.CaptureMaps, "red", steps=[0, 3])),
    ("CaptureMaps.steps[0]", one_map(bridle.CaptureMaps, "red", steps=[-1])),
    ("CaptureMaps.steps", one_map(bridle.CaptureMaps, "red", steps=[])),
    ("CaptureMaps.steps", one_map(bridle.CaptureMaps, "red", steps=1)),
    (
        "CaptureMaps.steps",
        lambda: {"attention": [bridle.CaptureMaps("red")], "image": picture(), "strength": 0.0},
    ),
    ("Reweight.factor", one_map(bridle.Reweight, "red", float("nan"))),
    ("Reweight.factor", one_map(bridle.Reweight, "red", 11)),
    ("Reweight.factor", one_map(bridle.Reweight, "red", "2")),
    ("Reweight.start", one_map(bridle.Reweight, "red", 2, start=0.5, end=0.5)),
    ("Reweight.end", one_map(bridle.Reweight, "red", 2, end=1.5)),
    ("InjectMap.map", inject("red")),
    ("InjectMap.map", inject("red", half_mask(64), box=BOX)),
    ("InjectMap.map", inject("red", NAN_MAP)),
    ("InjectMap.map", inject("red", EMPTY)),
    ("InjectMap.map", inject("red", -half_mask(64).astype(np.float32))),
    ("InjectMap.map", inject("red", np.ones(16, np.float32))),
    ("InjectMap.map", inject("red", np.ones((2, 3, 16, 16), np.float32))),
    ("InjectMap.map", inject("red", torch.ones(5, 16, 16))),
    ("InjectMap.map", inject("red", "no/such.png")),
    ("InjectMap.box[2]", inject("red", box=(0.0, 0.0, 1.1, 1.0))),
    ("InjectMap.box", inject("red", box=(0.5, 0.0, 0.5, 1.0))),
    ("InjectMap.box", inject("red", box=(0.0, 0.0, 0.004, 1.0))),
    ("InjectMap.box", inject("red", box=(0.0, 1.0))),
    ("InjectMap.strength", inject("red", box=BOX, strength=10.5)),
    ("InjectMap.strength", inject("red", box=BOX, strength=-0.1)),
    ("InjectMap.strength", inject("red", box=BOX, strength=1.5, mode="mass")),
    ("InjectMap.strength", two_masses(0.7, 0.4)),
    ("InjectMap.mode", inject("red", box=BOX, mode="add")),
    ("InjectMap.layers[0]", inject("red", box=BOX, layers="down_blocks.3")),
    ("InjectMap.start", inject("red", box=BOX, start=0.9, end=0.2)),
    ("PromptEdit.source_prompt", edit(None)),
    ("PromptEdit.source_prompt", edit("(a:nan)")),
    ("PromptEdit.cross", edit(cross=1.5)),
    ("PromptEdit.cross", edit(cross=(0.8, 0.2))),
    ("PromptEdit.cross[1]", edit(cross=(0.2, 1.2))),
    ("PromptEdit.cross['circle']", edit(cross={"circle": 2.0})),
    ("PromptEdit.self", edit(self=float("nan"))),
    ("PromptEdit.mode", edit(mode="swap")),
    ("prompt", edit("a red square")),
    ("LocalBlend.threshold", blend("circle", threshold=1.5)),
    ("LocalBlend.start", blend("circle", start=-1)),
    ("LocalBlend.words", edit(local_blend=3)),
    ("attention", lambda: {"attention": [bridle.PromptEdit(SOURCE), bridle.PromptEdit(PROMPT)]}),
    ("attention[0]", lambda: {"attention": ["circle"]}),
    ("attention[1]", lambda: {"attention": [bridle.CaptureMaps("red"), bridle.Region("x", BOX)]}),
]

REGION: list[tuple[str, Make]] = [
    ("regions[0]", lambda: {"regions": ["a star"]}),
    ("regions[1]", lambda: {"regions": [bridle.Region("x", BOX), bridle.CaptureMaps("red")]}),
    ("region_mode", lambda: {"region_mode": "couple"}),
    ("region_mode", lambda: {"region_mode": None}),
    ("base_ratio", lambda: {"base_ratio": 1.5}),
    ("bootstrapping_steps", lambda: {"bootstrapping_steps": -1}),
    ("Region.prompt", lambda: {"regions": [bridle.Region(None, BOX)]}),
    ("regions[1].prompt", lambda: {"regions": [bridle.Region("x", BOX), bridle.Region("(a:nan)", BOX)]}),
    ("regions[0].negative_prompt", lambda: {"regions": [bridle.Region("x", BOX, negative_prompt="(a:nan)")]}),
    ("Region.box[0]", one_region(box=(-0.1, 0.0, 1.0, 1.0))),
    ("Region.box[3]", one_region(box=(0.0, 0.0, 1.0, float("nan")))),
    ("Region.box", one_region(box=(0.0, 0.5, 1.0, 0.5))),
    ("Region.box", one_region(box=(0.9, 0.0, 0.1, 1.0))),
    ("Region.box", one_region(box="0,0,1,1")),
    ("Region.box", one_region()),
    ("Region.box", one_region(box=BOX, mask=half_mask(64))),
    ("regions[1].box", one_region(box=(0.0, 0.0, 0.004, 1.0))),
    ("regions[1]", one_region("latent", box=(0.05, 0.0, 0.1, 1.0))),
    ("regions[1].polygon", one_region(polygon=[(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])),
    ("regions[1]", one_region("latent", polygon=[(0.04, 0.04), (0.1, 0.04), (0.1, 0.1)])),
    ("Region.polygon", one_region(polygon=[(0.0, 0.0), (1.0, 1.0)])),
    ("Region.polygon[1]", one_region(polygon=[(0.0, 0.0), (1.0,), (0.5, 0.5)])),
    ("Region.polygon[2][1]", one_region(polygon=[(0.0, 0.0), (1.0, 0.0), (0.5, 1.5)])),
    ("Region.mask", one_region(mask=EMPTY)),
    ("Region.mask", one_region(mask=NAN_MAP)),
    ("Region.mask", one_region(mask=np.ones(16, bool))),
    ("regions[1]", one_region("latent", mask=SPOT)),
    ("regions[1]", one_region("latent", mask=half_mask(64) * np.float32(0.4))),
    ("Region.weight", one_region(box=BOX, weight=0)),
    ("Region.weight", one_region(box=BOX, weight=float("inf"))),
    ("Region.guidance_scale", one_region("latent", box=BOX, guidance_scale=-1)),
    ("regions[1].guidance_scale", one_region(box=BOX, guidance_scale=3.0)),
    ("Views.window", views(60)),
    ("Views.window", views(72)),
    ("Views.window", views(4)),
    ("Views.window", views(32.0)),
    ("Views.stride", views(32, 12)),
    ("Views.stride", views(32, 40)),
    ("Views.stride", views(None, 136)),
    ("Views.circular", views(32, circular=1)),
    ("Views.circular", views(circular=True)),
    ("views", lambda: {"views": 32}),
]

IMAGE_PROMPT: list[tuple[str, Make]] = [
    ("ImagePrompt.model", image_prompt(model="")),
    ("ImagePrompt.image", image_prompt(image=[])),
    ("ImagePrompt.image[1]", image_prompt(image=[picture(), None])),
    ("ImagePrompt.image[0]", image_prompt(image=np.full((16, 16, 3), np.nan, np.float32))),
    ("ImagePrompt.scale", image_prompt(scale=11)),
    ("ImagePrompt.scale", image_prompt(scale={"sideways": 1.0})),
    ("ImagePrompt.scale['up']", image_prompt(scale={"up": {"block_7": 1.0}})),
    ("ImagePrompt.scale['up']['block_1']", image_prompt(scale={"up": {"block_1": [1.0, 2.0]}})),
    ("ImagePrompt.scale['up']['block_1'][1]", image_prompt(scale={"up": {"block_1": [1.0, -2.0, 0.0]}})),
    ("ImagePrompt.mask", image_prompt(image=[picture()] * 2, mask=[half_mask(64)])),
    ("ImagePrompt.mask", image_prompt(mask=[half_mask(64)] * 2)),
    ("ImagePrompt.mask[0]", image_prompt(mask=EMPTY)),
    ("ImagePrompt.mask[1]", image_prompt(image=[picture()] * 2, mask=[half_mask(64), NAN_MAP])),
    ("ImagePrompt.mask[0]", image_prompt(mask=SPOT)),
    ("ImagePrompt.start", image_prompt(start=0.5, end=0.5)),
    ("ImagePrompt.subfolder", image_prompt(subfolder=3)),
    ("ImagePrompt.image_encoder", image_prompt(image_encoder="")),
]

LIMITS: list[tuple[str, Make]] = [
    ("CaptureMaps.words", one_map(bridle.CaptureMaps, [f"w{k}" for k in range(33)])),
    ("CaptureMaps.resolution", one_map(bridle.CaptureMaps, "red", resolution=5000)),
    ("attention", lambda: {"attention": [bridle.Reweight("red", 2.0)] * 9}),
    ("Reweight.words[0]", one_map(bridle.Reweight, "x" * 257, 2.0)),
    ("PromptEdit.source_prompt", edit("x" * 40_000)),
    ("PromptEdit.source_prompt", edit("BREAK " * 70)),
    ("regions", lambda: {"regions": [bridle.Region("x", BOX)] * 33}),
    ("Region.prompt", lambda: {"regions": [bridle.Region("x" * 40_000, BOX)]}),
    ("regions[0].prompt", lambda: {"regions": [bridle.Region("cat " * 8000, BOX)]}),
    ("Region.polygon", one_region(polygon=[(k / 2000, k % 2) for k in range(1025)])),
    ("bootstrapping_steps", lambda: {"bootstrapping_steps": 1001}),
    ("Views.window", views(8200)),
    ("views", lambda: {"views": bridle.Views(8, 8), "width": 8192, "height": 8192}),
    ("views", lambda: {"views": bridle.Views(64, 8), "width": 2048, "height": 512, "num_images": 2}),
    (
        "views",
        lambda: {**one_region("latent", box=BOX)(), "views": bridle.Views(64, 8), "width": 1024, "height": 512},
    ),
    (
        "regions",
        lambda: {"regions": [bridle.Region("x", BOX)] * 32, "region_mode": "latent", "num_images": 64},
    ),
    ("ImagePrompt.image", image_prompt(image=[np.zeros((8, 8, 3), np.uint8)] * 17)),
]

COVERED = [
    (
        "attention[0]",
        lambda control=control: {
            "regions": [bridle.Region("a star", BOX), bridle.Region("a ring", (0.5, 0.0, 1.0, 1.0))],
            "region_mode": "latent",
            "attention": [control],
        },
    )
    for control in (bridle.Reweight("circle", 2.0), bridle.InjectMap("circle", box=BOX))
]
"""Words of a prompt that latent regions leave nothing to."""

WRONG = [*WORDS, *MAPS, *REGION, *IMAGE_PROMPT, *COVERED]


def assert_refused(engine: bridle.Engine, field: str, make: Make, kind: type[RequestError]) -> None:
    with pytest.raises(RequestError) as caught:
        engine.sample(asked(make()))
    message = str(caught.value)
    assert caught.value.field == field, message
    assert type(caught.value) is kind, message
    assert len(message) <= 512 and message.isprintable() and not re.search(r"0x[0-9a-f]{6,}", message)


@pytest.mark.parametrize(("field", "make"), WRONG, ids=[f"{k}-{field}" for k, (field, _) in enumerate(WRONG)])
def test_what_is_wrong(idle_engine: bridle.Engine, field: str, make: Make) -> None:
    assert_refused(idle_engine, field, make, RequestError)


@pytest.mark.parametrize(("field", "make"), LIMITS, ids=[f"{k}-{field}" for k, (field, _) in enumerate(LIMITS)])
def test_what_is_too_much(idle_engine: bridle.Engine, field: str, make: Make) -> None:
    assert_refused(idle_engine, field, make, LimitError)


FINE: dict[str, Make] = {
    "a word of the second chunk": lambda: {
        "prompt": "a " * 80 + "circle",
        "attention": [bridle.Reweight("circle", 2.0)],
    },
    "words in capitals": one_map(bridle.CaptureMaps, ["CIRCLE", "Blue Square"]),
    "all of a word's mass": two_masses(0.6, 0.4),
    "mass in other steps": two_masses(1.0, 0.0),
    "mass in other layers": lambda: {
        "attention": [
            bridle.InjectMap("circle", box=BOX, mode="mass", strength=0.8, layers=layers) for layers in ("up", "down")
        ]
    },
    "a view as large as the longer side": views(64, 8),
    "a view larger than the shorter side": views(56, 8),
    "a spot inside cross-attention": one_region(mask=SPOT),
    "a spot as a map": inject("red", SPOT),
    "prompts of other numbers of words": edit("a square", mode="refine"),
}


@pytest.mark.parametrize("make", FINE.values(), ids=FINE)
def test_what_is_fine(idle_engine: bridle.Engine, make: Make) -> None:
    """The first network is asked for: no check stands in the way."""
    with pytest.raises(AssertionError, match="was called"):
        idle_engine.sample(asked(make()))


def test_a_list_with_a_bad_request_runs_nothing(idle_engine: bridle.Engine) -> None:
    with pytest.raises(RequestError, match=r"CaptureMaps\.words"):
        idle_engine.sample([asked(), asked(one_map(bridle.CaptureMaps, "star")())])


def test_an_image_prompt_of_another_kind(idle_engine: bridle.Engine, map_folder: Path, tmp_path: Path) -> None:
    """Files are at fault, so the error names files."""
    for fields in (
        {"model": "controlnet"},
        {"model": "t2i-adapter"},
        {"model": str(map_folder / "unet")},
        {"model": "no-such-adapter"},
        {"model": str(tmp_path)},
        {"weight_name": "other.safetensors"},
        {"subfolder": "../unet"},
        {"image_encoder": str(map_folder / "text_encoder")},
    ):
        with pytest.raises(ModelLoadError):
            idle_engine.sample(asked(image_prompt(**fields)()))
    with pytest.raises(ModelLoadError, match="is no IP-Adapter"):
        idle_engine.sample(asked(image_prompt(model="controlnet")()))
    for control in (bridle.ControlNet("ip-adapter", picture()), bridle.T2IAdapter("ip-adapter", picture())):
        with pytest.raises(ModelLoadError):
            idle_engine.sample(asked({"controls": [control]}))


def test_an_adapter_names_the_views_that_it_cannot_see(xl_map_engine: bridle.Engine) -> None:
    adapter = {"controls": [bridle.T2IAdapter("t2i-adapter", picture())]}
    with pytest.raises(RequestError) as caught:
        xl_map_engine.sample(asked(adapter, {"views": bridle.Views(40, 8)}))
    assert caught.value.field == "Views.window"
