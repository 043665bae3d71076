"""The command line, and replaying an image from its metadata."""

from pathlib import Path

import numpy as np
import typer
from PIL import Image
from runs import picture
from typer.testing import CliRunner

from bridle.cli import app


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_generate_and_replay(folder: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "edges.png")
    first, plain, again = (tmp_path / name for name in ("first.png", "plain.png", "again.png"))
    common = ["generate", "a red circle", "--model", str(folder), "--steps", "3", "--seed", "4"]
    control = f"controlnet={tmp_path / 'edges.png'},scale=0.8,end=0.9"
    for arguments in (
        [*common, "-o", str(first), "--control", control],
        [*common, "-o", str(plain)],
        ["generate", "--replay", str(first), "-o", str(again)],
    ):
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == 0, outcome.output
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(plain))
    assert "Seed: 4" in Image.open(first).text["parameters"]


def test_bad_control_is_one_line(folder: Path) -> None:
    outcome = CliRunner().invoke(app, ["generate", "x", "--model", str(folder), "--control", "canny"])
    assert outcome.exit_code == 2
    assert "control" in outcome.output and "Traceback" not in outcome.output


def test_doctor_names_every_backend() -> None:
    output = CliRunner().invoke(app, ["doctor"]).output
    assert all(f"backend {name}" in output for name in ("cuda", "cpu", "ort", "reference"))


def test_every_request_field_has_an_option() -> None:
    from dataclasses import fields

    import bridle

    command = typer.main.get_command(app).commands["generate"]
    offered = {name for parameter in command.params for name in (parameter.name, *parameter.opts)}
    renamed = {
        "prompt": "prompt",
        "num_inference_steps": "--steps",
        "controls": "--control",
        "crops_coords_top_left": "--crop",
        "negative_crops_coords_top_left": "--negative-crop",
        "output_type": "--save-latents",
    }
    for item in fields(bridle.Request):
        assert renamed.get(item.name, "--" + item.name.replace("_", "-")) in offered, item.name


def test_control_options_and_scheduler_json(folder: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "edges.png")
    picture(4).save(tmp_path / "mask.png")
    options = "scale=0.7,start=0.1,end=0.9,resize=crop,guess_mode=true,guess_scales=official,mask=" + str(
        tmp_path / "mask.png"
    )
    latents = tmp_path / "latents.npy"
    arguments = [
        *("generate", "x", "--model", str(folder), "--steps", "2", "--seed", "3", "--seed", "9", "--num-images", "2"),
        *("--control", f"controlnet={tmp_path / 'edges.png'},{options}", "-o", str(tmp_path / "out.png")),
        *("--scheduler", '{"_class_name": "EulerDiscreteScheduler"}', "--save-latents", str(latents)),
    ]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert np.load(latents).shape == (2, 4, 16, 16) and (tmp_path / "out-2.png").exists()
    outcome = CliRunner().invoke(app, [*arguments, "--control", f"controlnet={tmp_path / 'edges.png'},colour=red"])
    assert outcome.exit_code == 2 and "layer_weights" in outcome.output
