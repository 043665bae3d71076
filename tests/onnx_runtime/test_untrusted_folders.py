"""Folders whose graphs are not what they say: `bridle.load` raises one error that names the graph, and opens nothing else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import bridle
from bridle.errors import ModelLoadError

GRAPH, DATA = "unet/denoise.cpu.onnx", "unet/model.onnx_data"


def located(place: str) -> Callable[[Path], None]:
    """The weights of the graph are somewhere else."""

    def change(folder: Path) -> None:
        model = onnx.load(str(folder / GRAPH), load_external_data=False)
        for weight in model.graph.initializer:
            for entry in weight.external_data:
                if entry.key == "location":
                    entry.value = place.format(folder=folder)
        (folder / GRAPH).write_bytes(model.SerializeToString())

    return change


def with_op(domain: str) -> Callable[[Path], None]:
    """An op of another domain, which a library would have to bring."""

    def change(folder: Path) -> None:
        model = onnx.load(str(folder / GRAPH), load_external_data=False)
        model.graph.node.append(onnx.helper.make_node("Surprise", ["sample"], ["gift"], domain=domain))
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
        (folder / GRAPH).write_bytes(model.SerializeToString())

    return change


def link(folder: Path) -> None:
    """The data file is a link to a file outside."""
    (folder / DATA).replace(folder.parent / "elsewhere")
    (folder / DATA).symlink_to(folder.parent / "elsewhere")


def linked_folder(folder: Path) -> None:
    """The folder of the graphs is a link to one outside."""
    (folder / "unet").replace(folder.parent / "elsewhere")
    (folder / "unet").symlink_to(folder.parent / "elsewhere")


def hard_link(folder: Path) -> None:
    """The data file has a second name."""
    os.link(folder / DATA, folder.parent / "second")


def short(folder: Path) -> None:
    """The data file ends early."""
    os.truncate(folder / DATA, 4096)


def truncated(folder: Path) -> None:
    """The graph ends in the middle."""
    os.truncate(folder / GRAPH, (folder / GRAPH).stat().st_size // 2)


def huge(folder: Path) -> None:
    """The graph claims more bytes than a protobuf may have."""
    os.truncate(folder / GRAPH, 3 * 2**30)


CHANGES: dict[str, Callable[[Path], None]] = {
    "outside": located("../vae_decoder/model.onnx_data"),
    "absolute": located("{folder}/unet/model.onnx_data"),
    "in memory": located("*/_ORT_MEM_ADDR_/*"),
    "custom ops": with_op("org.example"),
    "link": link,
    "linked folder": linked_folder,
    "hard link": hard_link,
    "short data": short,
    "truncated": truncated,
    "huge": huge,
}


def test_the_copy_itself_is_loaded(exported: Path, tmp_path: Path) -> None:
    """The control: what the changes below are made to is good."""
    assert bridle.load(shutil.copytree(exported, tmp_path / "model")).backend.name == "ort"


@pytest.mark.parametrize("name", CHANGES)
def test_one_error_at_load(name: str, exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    CHANGES[name](folder)
    with pytest.raises(ModelLoadError) as caught:
        bridle.load(folder)
    assert caught.value.file.startswith("unet") and len(str(caught.value)) < 1000
