"""Folders of random weights: complete, reproducible, loadable here and in diffusers, no layer at zero."""

from pathlib import Path

import pytest
import torch
from runs import picture
from safetensors.torch import load_file
from typer.testing import CliRunner

import bridle
from bridle.cli import app
from bridle.errors import RequestError
from bridle.new_model import write_new_model
from bridle_kernels.ops import ReferenceOps


@pytest.mark.parametrize("fixture", ["folder", "xl_folder"])
def test_no_layer_is_zero(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    files = list(folder.rglob("*.safetensors"))
    assert len(files) == (6 if fixture == "xl_folder" else 5)
    for file in files:
        for name, tensor in load_file(file).items():
            assert tensor.abs().max() > 1e-3, (file.parent.name, name)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_new_model("tiny", tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / n / "unet/diffusion_pytorch_model.safetensors").read_bytes() for n in "abc")
    assert a == b and a != c


def test_refuses_a_full_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="folder"):
        write_new_model("tiny", tmp_path)
    with pytest.raises(RequestError, match="arch"):
        write_new_model("sd99", tmp_path / "new")
    with pytest.raises(RequestError, match="ip_adapter"):
        write_new_model("tiny", tmp_path / "new", ip_adapter="faceid")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_ip_adapter_is_added_and_changes_nothing_else(folder: Path, tmp_path: Path, kind: str) -> None:
    arguments = ["new-model", str(tmp_path / "new"), "--seed", "3", "--controlnet", "--t2i", "--ip-adapter", kind]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    written = {file.relative_to(tmp_path / "new") for file in (tmp_path / "new").rglob("*") if file.is_file()}
    plain = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    assert all((folder / file).read_bytes() == (tmp_path / "new" / file).read_bytes() for file in plain)
    assert {file.as_posix() for file in written - plain} == {
        "ip-adapter/ip-adapter.safetensors",
        "ip-adapter/image_encoder/config.json",
        "ip-adapter/image_encoder/model.safetensors",
    }
    for file in (tmp_path / "new/ip-adapter").rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert tensor.abs().max() > 1e-3, (file.name, name)


class MeasuringOps(ReferenceOps):
    """Keeps the largest value that any op has returned."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def __getattribute__(self, name: str) -> object:
        value = super().__getattribute__(name)
        if not callable(value) or name.startswith("_"):
            return value

        def measured(*arguments: object, **named: object) -> object:
            result = value(*arguments, **named)
            if isinstance(result, torch.Tensor) and result.is_floating_point() and result.numel():
                self.largest[name] = max(self.largest.get(name, 0.0), float(result.abs().max()))
            return result

        return measured


@pytest.mark.parametrize("fixture", ["folder", "xl_folder"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_activations_stay_small_under_controls(fixture: str, dtype: str, request: pytest.FixtureRequest) -> None:
    """No network drowns another, and half precision holds them all."""
    engine = bridle.load(request.getfixturevalue(fixture), backend="reference", dtype=dtype)
    engine.backend.ops = MeasuringOps()
    controls = [bridle.ControlNet("controlnet", picture()), bridle.T2IAdapter("t2i-adapter", picture())]
    engine.sample(bridle.Request("a red circle", num_inference_steps=2, controls=controls))
    assert len(engine.backend.ops.largest) > 10
    for name, largest in engine.backend.ops.largest.items():
        assert 0.01 < largest < 1000, name
