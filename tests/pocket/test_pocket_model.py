"""The model in the package: loaded without an argument, scored by its own card, resolved by name on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import bridle
from bridle.cli import app
from bridle.engine import POCKET
from controls import HINTS
from held_out import Case, held_out_case
from measures import score_row
from package import LARGEST, PARTS, size
from rows import ROWS, Settings, plain_request
from sampling import sample_pictures
from weights_hash import weights_hash

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "pocket_ruler.json"
PROMPTS, BATCH, SETTINGS = 32, 16, Settings(steps=10)
FLOOR = 0.7
"""Object accuracy. The model scores 0.83 here, and 0.10 with velocities taken for noise."""


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [held_out_case(index) for index in range(PROMPTS)]


@pytest.fixture
def engine() -> bridle.Engine:
    return bridle.load()


def objects(engine: bridle.Engine, cases: list[Case], **changes: object) -> float:
    requests = [plain_request(case, SETTINGS, **changes) for case in cases]
    return score_row(cases, sample_pictures(engine, requests, BATCH, "floor"))["objects"].mean


def test_the_package_holds_the_model_that_was_measured(engine: bridle.Engine) -> None:
    assert engine.path == POCKET and {entry.name for entry in POCKET.iterdir()} == {
        *PARTS,
        "model_index.json",
        "README.md",
    }
    assert size(POCKET) < LARGEST
    report = json.loads(RESULTS.read_text())
    assert report["prompts"] >= 200 and report["model_sha256"] == weights_hash(POCKET)
    card = (POCKET / "README.md").read_text()
    assert re.search(rf"\| no control \| {report['rows']['no control']['objects']['mean']:.2f} \|", card)


def test_objects_are_drawn_as_the_prompts_say(engine: bridle.Engine, cases: list[Case]) -> None:
    assert objects(engine, cases) >= FLOOR


def test_a_wrong_solver_is_below_the_floor(engine: bridle.Engine, cases: list[Case]) -> None:
    wrong = {**engine.backend.model.scheduler, "prediction_type": "epsilon"}
    assert objects(engine, cases, scheduler=wrong) < FLOOR - 0.2


def test_every_control_is_seen(engine: bridle.Engine, cases: list[Case]) -> None:
    columns = {"canny": "edge F1", "seg": "mask IoU", "sketch": "sketch F1"}
    some = cases[:8]
    bare = score_row(some, sample_pictures(engine, [plain_request(case, SETTINGS) for case in some], 8, "bare"))
    for name, column in columns.items():
        shown = sample_pictures(engine, [ROWS[name](case, SETTINGS) for case in some], 8, name)
        assert score_row(some, shown)[column].mean > bare[column].mean + 0.2, name


@pytest.mark.parametrize("name", HINTS)
def test_controls_are_named_on_the_command_line(name: str, tmp_path: Path) -> None:
    picture = tmp_path / "control.png"
    Image.fromarray(held_out_case(2).hints[name]).save(picture)
    made = {}
    for label, extra in (("plain", []), ("controlled", ["--control", f"{name}={picture}"])):
        out = tmp_path / f"{label}.png"
        outcome = CliRunner().invoke(app, ["generate", "a red circle", "--steps", "3", "-o", str(out), *extra])
        assert outcome.exit_code == 0, outcome.output
        made[label] = np.asarray(Image.open(out)).astype(int)
    assert made["plain"].shape == (128, 128, 3)
    assert np.abs(made["plain"] - made["controlled"]).max() > 20


def test_rendered_scenes_survive_the_autoencoder(engine: bridle.Engine, cases: list[Case]) -> None:
    scores = score_row(
        cases, sample_pictures(engine, [ROWS["autoencoder"](case, SETTINGS) for case in cases], 16, "vae")
    )
    assert min(scores[column].mean for column in ("objects", "counting", "relation")) >= 0.95
