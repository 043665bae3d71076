"""Maps, regions, views and image prompts on the command line, and made again from the image's metadata."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result as Outcome
from PIL import Image
from runs import half_mask, picture
from typer.testing import CliRunner

import bridle
from bridle.cli import app

PROMPT = "a red circle left of a blue square"
COMMON: dict[str, Any] = {"seed": 4, "width": 64, "height": 48, "num_inference_steps": 2, "guidance_scale": 4.0}
OPTIONS = ("--seed", "4", "--width", "64", "--height", "48", "--steps", "2", "--guidance-scale", "4")


def invoke(*arguments: str) -> Outcome:
    return CliRunner().invoke(app, ["generate", *arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mask.png and photo.png."""
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(half_mask(64)).save(folder / "mask.png")
    picture(3).save(folder / "photo.png")
    return folder


Case = tuple[Callable[[Path], list[str]], Callable[[Path], dict[str, Any]]]

CASES: dict[str, Case] = {
    "region box": (
        lambda _: ["--region", "0,0,0.5,1=a = b;weight=2;negative_prompt=a moon", "--base-ratio", "0.1"],
        lambda _: {
            "regions": [bridle.Region("a = b", (0.0, 0.0, 0.5, 1.0), weight=2.0, negative_prompt="a moon")],
            "base_ratio": 0.1,
        },
    ),
    "region mask": (
        lambda files: ["--region", f"{files / 'mask.png'}=a star", "--region", "0,0,1,0.5=a ring"],
        lambda files: {
            "regions": [
                bridle.Region("a star", mask=files / "mask.png"),
                bridle.Region("a ring", (0.0, 0.0, 1.0, 0.5)),
            ]
        },
    ),
    "region mode": (
        lambda _: [
            *("--region", "0,0,0.5,1=a star;guidance_scale=2", "--region-mode", "latent"),
            *("--bootstrapping-steps", "1"),
        ],
        lambda _: {
            "regions": [bridle.Region("a star", (0.0, 0.0, 0.5, 1.0), guidance_scale=2.0)],
            "region_mode": "latent",
            "bootstrapping_steps": 1,
        },
    ),
    "views": (lambda _: ["--views", "48"], lambda _: {"views": bridle.Views(48)}),
    "views stride": (lambda _: ["--views", "48,16,circular"], lambda _: {"views": bridle.Views(48, 16, True)}),
    "heatmap": (
        lambda _: ["--heatmap", "circle", "--heatmap", "blue square"],
        lambda _: {"attention": [bridle.CaptureMaps(["circle", "blue square"])]},
    ),
    "reweight": (
        lambda _: ["--reweight", "circle=3;end=0.6", "--reweight", "blue square=-1"],
        lambda _: {"attention": [bridle.Reweight("circle", 3.0, end=0.6), bridle.Reweight("blue square", -1.0)]},
    ),
    "inject map": (
        lambda files: [
            *("--inject-map", "circle=0,0,0.5,1;strength=2;end=0.6"),
            *("--inject-map", f"square={files / 'mask.png'};mode=mass;strength=0.5"),
        ],
        lambda files: {
            "attention": [
                bridle.InjectMap("circle", box=(0.0, 0.0, 0.5, 1.0), strength=2.0, end=0.6),
                bridle.InjectMap("square", files / "mask.png", mode="mass", strength=0.5),
            ]
        },
    ),
    "edit of": (
        lambda _: ["--edit-of", "a red star left of a blue square;cross=0.6;self=0.5;blend=circle;source_blend=star"],
        lambda _: {
            "attention": [
                bridle.PromptEdit(
                    "a red star left of a blue square",
                    cross=0.6,
                    self=0.5,
                    local_blend=bridle.LocalBlend("circle", "star"),
                )
            ]
        },
    ),
    "edit refine": (
        lambda _: ["--edit-of", "a circle;mode=refine"],
        lambda _: {"attention": [bridle.PromptEdit("a circle", mode="refine")]},
    ),
    "image prompt": (
        lambda files: [
            *("--image-prompt", f"ip-adapter={files / 'photo.png'};scale=0.7;end=0.9;mask={files / 'mask.png'}"),
        ],
        lambda files: {
            "controls": [
                bridle.ImagePrompt("ip-adapter", files / "photo.png", scale=0.7, end=0.9, mask=files / "mask.png")
            ]
        },
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_option_is_the_request_that_it_says(
    map_folder: Path, map_engine: bridle.Engine, files: Path, tmp_path: Path, case: Case
) -> None:
    options, fields = case
    target = tmp_path / "out.png"
    outcome = invoke(
        *(PROMPT, "--model", str(map_folder), "-o", str(target)),
        *("--backend", map_engine.backend.name, *OPTIONS, *options(files)),
    )
    assert outcome.exit_code == 0, outcome.output
    asked = bridle.Request(PROMPT, **COMMON, **fields(files))
    result = map_engine.sample(asked)
    assert isinstance(result, bridle.Result)
    assert np.array_equal(np.asarray(Image.open(target)), np.asarray(result.images[0]))
    plain = map_engine.sample(bridle.Request(PROMPT, **COMMON))
    assert np.array_equal(np.asarray(plain.images[0]), np.asarray(result.images[0])) is ("--heatmap" in options(files))
    written = {target}
    if result.maps:
        written.add(tmp_path / "out-heatmap.png")
        assert Image.open(tmp_path / "out-heatmap.png").tobytes() == result.heat_map_sheet(0).tobytes()
    if result.source_images is not None:
        written.add(tmp_path / "out-source.png")
        assert Image.open(tmp_path / "out-source.png").tobytes() == result.source_images[0].tobytes()
    assert {Path(line) for line in outcome.output.split()} == written == set(tmp_path.iterdir())


def test_pictures_beside_each_of_several_images(map_folder: Path, tmp_path: Path) -> None:
    options = ("--heatmap", "circle", "--edit-of", "a red star left of a blue square", "--num-images", "2")
    outcome = invoke(PROMPT, "--model", str(map_folder), "-o", str(tmp_path / "a.png"), *OPTIONS, *options)
    assert outcome.exit_code == 0, outcome.output
    names = [f"a{number}{what}.png" for number in ("", "-2") for what in ("", "-heatmap", "-source")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert len({(tmp_path / name).read_bytes() for name in names}) == 6


TOGETHER = {
    "maps": ("region box", "heatmap", "reweight", "inject map", "edit of", "image prompt"),
    "canvas": ("region mode", "views stride", "reweight", "image prompt"),
}


@pytest.mark.parametrize("names", TOGETHER.values(), ids=TOGETHER)
def test_replay_is_exact(map_folder: Path, files: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    options = [option for name in names for option in CASES[name][0](files)]
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    outcome = invoke(PROMPT, "--model", str(map_folder), "-o", str(first), *OPTIONS, *options)
    assert outcome.exit_code == 0, outcome.output
    outcome = invoke("--replay", str(first), "-o", str(again))
    assert outcome.exit_code == 0, outcome.output
    beside = {path.name.removeprefix("first") for path in tmp_path.glob("first*")}
    assert beside == ({".png", "-heatmap.png", "-source.png"} if "heatmap" in names else {".png"})
    for suffix in beside:
        one, other = (Image.open(tmp_path / f"{name}{suffix}") for name in ("first", "again"))
        assert one.tobytes() == other.tobytes(), suffix
        assert np.asarray(one).std() > 1


def test_options_of_the_request_stand_alone_beside_replay(map_folder: Path, files: Path, tmp_path: Path) -> None:
    """What the PNG says is not said again; how it is loaded and written may be."""
    first = tmp_path / "first.png"
    assert invoke(PROMPT, "--model", str(map_folder), "-o", str(first), *OPTIONS).exit_code == 0
    again = ("--replay", str(first), "-o", str(tmp_path / "again.png"))
    outcome = invoke(*again, "--no-metadata", "--model", str(map_folder), "--save-latents", str(tmp_path / "l.npy"))
    assert outcome.exit_code == 0, outcome.output
    assert Image.open(tmp_path / "again.png").text == {} and np.load(tmp_path / "l.npy").shape == (1, 4, 6, 8)
    for name, (options, _) in CASES.items():
        outcome = invoke(*again, *options(files))
        assert outcome.exit_code == 2 and "beside --replay" in outcome.output, name


WRONG: list[tuple[str, str, str]] = [
    ("--region", "a star", "region"),
    ("--region", "0,0,1,1", "region"),
    ("--region", "0,0,1,1=", "region"),
    ("--region", "=a star", "region"),
    ("--region", "0,0,1=a star", "Region.mask"),
    ("--region", "0,0,1,2=a star", "Region.box[3]"),
    ("--region", "0,0,nan,1=a star", "Region.box[2]"),
    ("--region", "none.png=a star", "Region.mask"),
    ("--region", "0,0,1,1=a star;colour=red", "weight="),
    ("--region", "0,0,1,1=a star;weight=heavy", "region weight"),
    ("--region", "0,0,1,1=a star;weight=0", "Region.weight"),
    ("--region", "0,0,1,1=a star;guidance_scale=3", "regions[0].guidance_scale"),
    ("--region-mode", "couple", "region_mode"),
    ("--base-ratio", "2", "base_ratio"),
    ("--bootstrapping-steps", "-1", "bootstrapping_steps"),
    ("--views", "", "views"),
    ("--views", "wide", "views"),
    ("--views", "48,16,8", "views"),
    ("--views", "48,", "views"),
    ("--views", "-48", "views"),
    ("--views", "9" * 5000, "views"),
    ("--views", "999999999", "Views.window"),
    ("--views", "50", "Views.window"),
    ("--heatmap", "star", "CaptureMaps.words[0]"),
    ("--heatmap", "", "CaptureMaps.words"),
    ("--reweight", "circle", "reweight"),
    ("--reweight", "circle=", "reweight"),
    ("--reweight", "circle=loud", "reweight"),
    ("--reweight", "star=2", "Reweight.words[0]"),
    ("--reweight", "circle=99", "Reweight.factor"),
    ("--reweight", "circle=2;from=0", "start="),
    ("--inject-map", "circle", "inject_map"),
    ("--inject-map", "circle=", "inject_map"),
    ("--inject-map", "circle=none.png", "InjectMap.map"),
    ("--inject-map", "circle=0,0,0,1", "InjectMap.box"),
    ("--inject-map", "circle=0,0,1,1;mode=add", "InjectMap.mode"),
    ("--inject-map", "circle=0,0,1,1;strength=much", "inject_map strength"),
    ("--edit-of", "a circle", "prompt"),
    ("--edit-of", "a circle;mode=swap", "PromptEdit.mode"),
    ("--edit-of", "a circle;cross=most", "edit_of cross"),
    ("--edit-of", "a circle;source_blend=circle", "edit_of"),
    ("--edit-of", "a circle;mode=refine;blend=star;source_blend=circle", "LocalBlend.words[0]"),
    ("--image-prompt", "ip-adapter", "image_prompt"),
    ("--image-prompt", "=photo.png", "image_prompt"),
    ("--image-prompt", "ip-adapter=none.png", "ImagePrompt.image[0]"),
    ("--image-prompt", "ip-adapter=PHOTO;scale=loud", "image_prompt scale"),
    ("--image-prompt", "ip-adapter=PHOTO;end=0", "ImagePrompt.start"),
    ("--image-prompt", "ip-adapter=PHOTO;mask=none.png", "ImagePrompt.mask[0]"),
    ("--image-prompt", "controlnet=PHOTO", "is no IP-Adapter"),
    ("--image-prompt", "nothing=PHOTO", "nothing"),
]


@pytest.mark.parametrize(("option", "value", "named"), WRONG, ids=[f"{o}-{v[:24]}" for o, v, _ in WRONG])
def test_what_is_written_wrongly_is_one_line(
    map_engine: bridle.Engine,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    named: str,
) -> None:
    monkeypatch.setattr("bridle.cli._load", lambda *_: map_engine)
    value = value.replace("PHOTO", str(files / "photo.png"))
    outcome = invoke(PROMPT, "-o", str(tmp_path / "o.png"), *OPTIONS, option, value)
    assert outcome.exit_code == 2, outcome.output
    assert named in outcome.output and len(outcome.output.strip().splitlines()) == 1, outcome.output
    assert list(tmp_path.iterdir()) == []
