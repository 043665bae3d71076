"""Tiny model folders and engines that the tests of this folder share."""

from pathlib import Path

import pytest

import bridle
from bridle.new_model import write_new_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1.x, four levels, with a ControlNet and an adapter."""
    path = tmp_path_factory.mktemp("sd") / "model"
    write_new_model("tiny", path, seed=3, controlnet=True, t2i=True)
    return path


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL, three levels, with a ControlNet and an adapter."""
    path = tmp_path_factory.mktemp("xl") / "model"
    write_new_model("tiny-xl", path, seed=4, controlnet=True, t2i=True)
    return path


@pytest.fixture(scope="session")
def engine(folder: Path) -> bridle.Engine:
    """The SD 1.x engine."""
    return bridle.load(folder)


@pytest.fixture(scope="session")
def xl_engine(xl_folder: Path) -> bridle.Engine:
    """The SDXL engine."""
    return bridle.load(xl_folder)
