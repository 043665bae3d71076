"""The command line, and replaying an image from its metadata."""

from pathlib import Path

import numpy as np
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
