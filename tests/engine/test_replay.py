"""A request survives the metadata of its image: every field, every bit, and the image made again from it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from runs import half_mask, picture
from typer.testing import CliRunner

import bridle
from bridle.cli import app
from bridle.errors import RequestError
from bridle.png_metadata import read_png
from bridle.request_json import Loading, request_from_json, request_to_json

RANDOM = np.random.default_rng(11)
FLOATS = RANDOM.random((24, 40, 3), dtype=np.float32)
MASK = RANDOM.random((33, 17), dtype=np.float32)
CONTROLS = (
    bridle.ControlNet(
        Path("controlnet"),
        FLOATS,
        scale=0.1,
        start=1 / 3,
        end=0.7,
        mask=MASK,
        guess_mode=True,
        guess_scales="official",
        layer_weights=[0.1 * k for k in range(13)],
        resize="crop",
    ),
    bridle.T2IAdapter("t2i-adapter", picture(), scale=0.3, start=0.1, end=0.9, mask=half_mask(), resize="crop"),
    bridle.ImagePrompt(
        "ip-adapter",
        [FLOATS, picture()],
        scale={"down": 0.1, "up": {"block_1": (0.2, 0.3, 0.4)}},
        start=0.2,
        end=0.8,
        mask=[MASK, half_mask()],
        subfolder="models",
        weight_name="a.safetensors",
        image_encoder=Path("encoder"),
    ),
)
REGIONS = (
    bridle.Region("a ring", (0.1, 0.2, 0.3, 0.4), weight=2.5, negative_prompt="x", guidance_scale=1 / 3),
    bridle.Region("a star", mask=MASK),
    bridle.Region("a moon", polygon=[(0.0, 0.0), (1.0, 0.1), (0.3, 0.7)]),
)
ATTENTION = (
    bridle.CaptureMaps(["circle"], resolution=8, steps=[0, 3], layers=["up", "mid"]),
    bridle.Reweight(["red", "circle"], -0.7, start=0.1, end=0.6),
    bridle.InjectMap("circle", MASK, strength=0.9, mode="mass", start=0.1, end=0.4, layers="down"),
    bridle.InjectMap("circle", box=(0.0, 0.1, 0.7, 1.0)),
    bridle.PromptEdit(
        "a blue circle",
        cross={"default_": 0.7, "circle": (0.1, 0.3)},
        self=(0.2, 0.5),
        mode="refine",
        local_blend=bridle.LocalBlend("circle", ["blue circle"], threshold=0.2, start=0.1),
    ),
)
FILLED: Mapping[str, object] = {
    "prompt": 'a (red:1.3) "circle", 猫\n\\(x\\)',
    "negative_prompt": "",
    "prompt_2": "a star",
    "negative_prompt_2": "dull",
    "prompt_syntax": "plain",
    "num_images": 2,
    "seed": (2**64 - 1, 2**63 + 1),
    "width": 96,
    "height": 160,
    "num_inference_steps": 7,
    "guidance_scale": 0.1 + 0.2,
    "scheduler": "euler a",
    "eta": 1 / 3,
    "noise": "philox",
    "image": picture(),
    "strength": 0.7,
    "mask_image": MASK,
    "depth_image": FLOATS,
    "controls": CONTROLS,
    "regions": REGIONS,
    "region_mode": "latent",
    "base_ratio": 0.7,
    "bootstrapping_steps": 3,
    "views": bridle.Views(64, 16, True),
    "attention": ATTENTION,
    "clip_skip": 1,
    "original_size": (200, 100),
    "crops_coords_top_left": (1, 2),
    "target_size": (300, 400),
    "negative_original_size": (5, 6),
    "negative_crops_coords_top_left": (7, 8),
    "negative_target_size": (9, 10),
    "latents": torch.randn(2, 4, 20, 12, generator=torch.Generator().manual_seed(1)),
    "vae_tiling": np.True_,
    "output_type": "np",
}


def through_text(request: bridle.Request, index: int) -> bridle.Request:
    document = json.dumps(request_to_json(request, index, Loading("m")), allow_nan=False)
    again, loading = request_from_json(json.loads(document))
    assert loading == Loading("m")
    return again


def same(one: object, other: object) -> bool:
    if isinstance(one, Image.Image):
        return isinstance(other, Image.Image) and one.mode == other.mode and one.tobytes() == other.tobytes()
    if isinstance(one, np.ndarray | torch.Tensor):
        return type(one) is type(other) and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, Path) or isinstance(other, Path):
        return str(one) == str(other)
    if is_dataclass(one):
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_every_field_is_filled_here() -> None:
    plain = bridle.Request()
    for item in fields(bridle.Request):
        assert not same(getattr(bridle.Request(**FILLED), item.name), getattr(plain, item.name)), item.name
    for control in CONTROLS:
        plain_control = type(control)("x", FLOATS[:9, :9])
        for item in fields(control):
            assert not same(getattr(control, item.name), getattr(plain_control, item.name)), item.name


@pytest.mark.parametrize("index", [0, 1])
def test_every_field_survives(index: int) -> None:
    request = bridle.Request(**FILLED)
    again = through_text(request, index)
    assert (again.num_images, again.seeds, again.output_type) == (1, request.seeds[index : index + 1], "pil")
    assert torch.equal(again.latents, request.latents[index : index + 1])
    for item in fields(bridle.Request):
        if item.name not in ("num_images", "seed", "output_type", "latents"):
            assert same(getattr(request, item.name), getattr(again, item.name)), item.name


def test_images_with_the_same_seed_keep_their_own_latents() -> None:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    request = bridle.Request(seed=[5, 5], num_images=2, latents=latents)
    assert torch.equal(through_text(request, 1).latents, latents[1:])


def test_negative_prompt_none_is_not_empty() -> None:
    assert through_text(bridle.Request(), 0).negative_prompt is None
    assert through_text(bridle.Request(negative_prompt=""), 0).negative_prompt == ""


def test_scheduler_configurations_survive() -> None:
    saved = dict(DPMSolverMultistepScheduler().config) | {"_class_name": "DPMSolverMultistepScheduler"}
    assert saved["lambda_min_clipped"] == -np.inf
    for config in (
        saved,
        {"_class_name": "EulerDiscreteScheduler", "trained_betas": np.linspace(0.1, 0.2, 5), "beta_end": 0.5},
    ):
        request = bridle.Request(scheduler=config)
        again = through_text(request, 0).scheduler
        assert isinstance(again, dict) and again.keys() == config.keys()
        for name, value in config.items():
            assert np.array_equal(again[name], value), name


def test_a_scheduler_dictionary_is_copied_on_entry() -> None:
    config = {"_class_name": "EulerDiscreteScheduler"}
    request = bridle.Request(scheduler=config)
    config["_class_name"] = "nonsense"
    assert request.scheduler == {"_class_name": "EulerDiscreteScheduler"}


def replayed(folder: Path, tmp_path: Path, request: bridle.Request, *options: str) -> None:
    """Saves the request's only image, makes it again from the file, and demands the same pixels."""
    engine = bridle.load(folder, dtype="bfloat16")
    result = engine.sample(request)
    assert isinstance(result, bridle.Result)
    result.save(tmp_path / "first.png")
    arguments = ["generate", "--replay", str(tmp_path / "first.png"), "-o", str(tmp_path / "again.png"), *options]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    first, again = (Image.open(tmp_path / name) for name in ("first.png", "again.png"))
    assert first.tobytes() == again.tobytes()
    assert np.asarray(first).std() > 1


def test_an_image_of_many_fields_is_made_again(folder: Path, tmp_path: Path) -> None:
    """Also in the model's type of then, which "auto" would not choose here."""
    controls = [
        bridle.ControlNet("controlnet", FLOATS, scale=0.4, mask=MASK, guess_mode=True, layer_weights=[0.5] * 13),
        bridle.T2IAdapter("t2i-adapter", picture(), scale=0.6, mask=MASK, end=0.8),
    ]
    request = bridle.Request(
        "a (red:1.3) circle",
        negative_prompt="[blue]",
        seed=9,
        num_inference_steps=4,
        scheduler={"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
        image=FLOATS,
        mask_image=MASK,
        strength=0.8,
        controls=controls,
        clip_skip=1,
        vae_tiling=True,
        latents=torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)),
    )
    replayed(folder, tmp_path, request)


def test_sdxl_fields_are_replayed(xl_folder: Path, tmp_path: Path) -> None:
    names = ("original_size", "crops_coords_top_left", "target_size", "negative_original_size")
    sizes = {name: FILLED[name] for name in (*names, "negative_crops_coords_top_left", "negative_target_size")}
    request = bridle.Request(
        "a", prompt_2="b", negative_prompt="c", negative_prompt_2="d", num_inference_steps=2, **sizes
    )
    replayed(xl_folder, tmp_path, request)


def test_another_model_and_contradictions_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    bridle.load(folder).sample(bridle.Request("a", num_inference_steps=1)).save(tmp_path / "a.png")
    common = ["generate", "--replay", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
    moved = folder.rename(folder.with_name("moved"))
    try:
        outcome = CliRunner().invoke(app, [*common, "--model", str(moved)])
        assert outcome.exit_code == 0, outcome.output
        assert Image.open(tmp_path / "a.png").tobytes() == Image.open(tmp_path / "b.png").tobytes()
        for extra in (["--seed", "3"], ["--steps", "30"], ["a prompt"]):
            outcome = CliRunner().invoke(app, [*common, "--model", str(moved), *extra])
            assert outcome.exit_code == 2 and "beside --replay" in outcome.output
    finally:
        moved.rename(folder)


def test_the_model_of_the_package_is_not_named_by_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridle.engine.POCKET", folder)
    result = bridle.load().sample(bridle.Request("a", num_inference_steps=1))
    assert isinstance(result, bridle.Result)
    assert str(folder) not in json.dumps(result.metadata[0][1])
    assert request_from_json(result.metadata[0][1])[1].model is None


DAMAGE: Mapping[str, Callable[[dict], object]] = {
    "format": lambda d: d.update(format=2),
    "no request": lambda d: d.pop("request"),
    "no load": lambda d: d.pop("load"),
    "load field": lambda d: d["load"].update(device="cuda"),
    "load type": lambda d: d["load"].update(model=3),
    "controls": lambda d: d["request"].update(controls={}),
    "control": lambda d: d["request"].update(controls=[3]),
    "control type": lambda d: d["request"]["controls"][0].update(type="os.system"),
    "control field": lambda d: d["request"]["controls"][0].update(nonsense=1),
    "unknown field": lambda d: d["request"].update(nonsense=1),
    "path": lambda d: d["request"].update(image="/etc/passwd"),
    "base64": lambda d: d["request"].update(image={"png": "***"}),
    "not a png": lambda d: d["request"].update(image={"png": "R0lGODlhAQABAAAAACw="}),
    "shape": lambda d: d["request"].update(mask_image={"float32": "AAAAAA==", "shape": [5]}),
    "no shape": lambda d: d["request"].update(mask_image={"float32": "AAAAAA=="}),
    "value": lambda d: d["request"].update(num_inference_steps=10**9),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_documents_are_typed_errors(damage: Callable[[dict], object]) -> None:
    document = json.loads(json.dumps(request_to_json(bridle.Request(**FILLED), 0, Loading("m"))))
    request_from_json(document)
    damage(document)
    with pytest.raises(RequestError):
        request_from_json(document)


def test_png_of_another_program(tmp_path: Path) -> None:
    picture().save(tmp_path / "plain.png")
    assert read_png(tmp_path / "plain.png") is None
    outcome = CliRunner().invoke(
        app, ["generate", "--replay", str(tmp_path / "plain.png"), "-o", str(tmp_path / "o.png")]
    )
    assert outcome.exit_code == 2 and "a PNG that carries a bridle request" in outcome.output
