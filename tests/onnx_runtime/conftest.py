"""A tiny model with every control, and the folder that it is exported to."""

from pathlib import Path

import pytest

import bridle
from bridle.new_model import write_new_model
from bridle_exporters import export

FEATURES = ("residuals", "regions", "maps")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1.x with a ControlNet, an adapter and an IP-Adapter."""
    path = tmp_path_factory.mktemp("weights") / "model"
    write_new_model("tiny", path, seed=3, controlnet=True, t2i=True, ip_adapter="base")
    return path


@pytest.fixture(scope="session")
def exported(weights: Path) -> Path:
    """All of it as graphs, with every feature."""
    out = weights.parent / "exported"
    controls = [weights / name for name in ("controlnet", "t2i-adapter", "ip-adapter/ip-adapter.safetensors")]
    export(weights, out, controls=controls, features=FEATURES)
    return out


@pytest.fixture(scope="session")
def reference(weights: Path) -> bridle.Engine:
    """What the graphs are measured by."""
    return bridle.load(weights, backend="reference")


@pytest.fixture(scope="session")
def engine(exported: Path) -> bridle.Engine:
    """The graphs in ONNX Runtime."""
    return bridle.load(exported)


@pytest.fixture(scope="session")
def plain(weights: Path) -> Path:
    """The model exported without any feature."""
    out = weights.parent / "plain"
    export(weights, out, controls=[weights / "controlnet"])
    return out
