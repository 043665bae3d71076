"""Tiny model folders; copies are cheap enough to be broken by every test."""

import shutil
from pathlib import Path

import pytest

from bridle.new_model import write_new_model


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1.x with a ControlNet and an adapter; not to be changed."""
    path = tmp_path_factory.mktemp("sd") / "model"
    write_new_model("tiny", path, seed=1, controlnet=True, t2i=True)
    return path


@pytest.fixture(scope="session")
def original_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL with a ControlNet and an adapter; not to be changed."""
    path = tmp_path_factory.mktemp("xl") / "model"
    write_new_model("tiny-xl", path, seed=2, controlnet=True, t2i=True)
    return path


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(original, tmp_path / "model"))
