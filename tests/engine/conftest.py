"""Tiny model folders and engines that the tests of this folder share."""

import json
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


@pytest.fixture(scope="session", params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """What the engines below compute with: their tests hold for every backend."""
    return request.param


@pytest.fixture(scope="session")
def engine(folder: Path, backend: str) -> bridle.Engine:
    """The SD 1.x engine."""
    return bridle.load(folder, backend=backend)


@pytest.fixture(scope="session")
def xl_engine(xl_folder: Path, backend: str) -> bridle.Engine:
    """The SDXL engine."""
    return bridle.load(xl_folder, backend=backend)


@pytest.fixture(scope="session")
def map_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1.x with every control, and an autoencoder that takes tiles of 32 pixels."""
    path = tmp_path_factory.mktemp("maps") / "model"
    write_new_model("tiny", path, seed=3, controlnet=True, t2i=True, ip_adapter="base")
    config = path / "vae/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 32}))
    return path


@pytest.fixture(scope="session")
def map_engine(map_folder: Path, backend: str) -> bridle.Engine:
    """The SD 1.x engine with every control."""
    return bridle.load(map_folder, backend=backend)


@pytest.fixture(scope="session")
def xl_map_engine(tmp_path_factory: pytest.TempPathFactory, backend: str) -> bridle.Engine:
    """An SDXL engine with every control; its IP-Adapter is of the other kind."""
    path = tmp_path_factory.mktemp("xl-maps") / "model"
    write_new_model("tiny-xl", path, seed=4, controlnet=True, t2i=True, ip_adapter="plus")
    return bridle.load(path, backend=backend)
