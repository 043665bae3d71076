"""Folders of random weights: complete, reproducible, loadable here and in diffusers, no layer at zero."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from bridle.errors import RequestError
from bridle.new_model import write_new_model


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
