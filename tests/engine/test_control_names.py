"""What a control's name means inside the folder of a model."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from control_cases import CONTROLS

import bridle
from bridle.engine import resolve_control

KINDS = ("ControlNet", "T2IAdapter", "ImagePrompt")
FOLDERS = {"controlnet": "controlnet-both", "t2i-adapter": "t2iadapter-both", "ip-adapter": "ip-adapter-both"}


@pytest.fixture(scope="module")
def folder(map_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a control of every kind under one name."""
    path = shutil.copytree(map_folder, tmp_path_factory.mktemp("names") / "model")
    for old, new in FOLDERS.items():
        (path / old).rename(path / new)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_controls_of_each_kind_may_have_one_name(folder: Path, map_folder: Path, kind: str) -> None:
    (control,) = CONTROLS[kind]["controls"]
    found = bridle.load(folder, backend="reference").control(replace(control, model="both"))
    alone = bridle.load(map_folder, backend="reference").control(control)
    assert type(found) is type(alone) and getattr(found, "config", None) == getattr(alone, "config", None)


def test_a_name_is_looked_for_among_the_other_kinds_last(folder: Path) -> None:
    assert resolve_control(folder, "both", bridle.T2IAdapter) == folder / "t2iadapter-both"
    assert resolve_control(folder, "both") == folder / "controlnet-both"
    (folder / "controlnet-edges").mkdir()
    (folder / "t2i_adapter/depth").mkdir(parents=True)
    assert resolve_control(folder, "edges", bridle.T2IAdapter) == folder / "controlnet-edges"
    assert resolve_control(folder, "depth") == folder / "t2i_adapter/depth"
    assert resolve_control(folder, "elsewhere") == "elsewhere"
