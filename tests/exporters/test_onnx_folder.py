"""Exported folders: what is in them, what is refused, and that nothing is left of an export that fails."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx_runs import Session
from typer.testing import CliRunner

import bridle
from bridle.cli import app
from bridle.errors import ExportError, RequestError
from bridle.new_model import write_new_model
from bridle_exporters import export
from bridle_exporters.onnx_graphs import folder as exporting

POCKET = Path(bridle.__file__).parent / "assets" / "pocket"
CONTROLS = [POCKET / "controlnet-canny", POCKET / "controlnet-seg", POCKET / "t2iadapter-sketch"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "out"
    arguments = ["export", "--model", str(POCKET), "--features", "residuals,regions,maps", str(target)]
    for control in CONTROLS:
        arguments += ["--control", str(control)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"100%.* 7/7 .*network", result.output), "no progress was shown"
    return target


def test_the_folder_is_what_optimum_loads(out: Path) -> None:
    for name in ("text_encoder", "unet", "vae_encoder", "vae_decoder"):
        assert {"model.onnx", "model.onnx_data", "config.json"} <= set(os.listdir(out / name))
    for copied in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"):
        assert (out / copied).read_bytes() == (POCKET / copied).read_bytes()
    assert {"vocab.json", "merges.txt"} <= set(os.listdir(out / "tokenizer"))
    wanted = {
        "text_encoder": (["input_ids"], ["last_hidden_state", "pooler_output"]),
        "unet": (["sample", "timestep", "encoder_hidden_states"], ["out_sample"]),
        "vae_encoder": (["sample"], ["latent_parameters"]),
        "vae_decoder": (["latent_sample"], ["sample"]),
    }
    for name, (inputs, outputs) in wanted.items():
        session = Session(out / name / "model.onnx")
        assert session.required == inputs
        assert session.names[: len(outputs)] == outputs


def test_every_graph_is_standard_and_passes_the_checker(out: Path) -> None:
    graphs = sorted(out.rglob("*.onnx"))
    assert len(graphs) > 20
    for path in graphs:
        model = onnx.load(str(path), load_external_data=False)
        provider = path.stem.partition(".")[2]
        domains = {node.domain for node in model.graph.node}
        assert domains <= ({""} if provider in ("", "tensorrt") else {"", "com.microsoft"}), path
        if provider == "cuda":
            assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, "com.microsoft": 1}
        if provider == "tensorrt":
            assert not any(node.op_type == "Attention" for node in model.graph.node)
        if provider in ("", "tensorrt"):
            onnx.checker.check_model(str(path), full_check=True)
            inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
            known = {info.name for info in inferred.graph.value_info}
            results = {name for node in model.graph.node for name in node.output}
            assert results - known <= {o.name for o in model.graph.output}, path


def test_weights_are_in_one_file_per_folder_without_copies(out: Path) -> None:
    for folder in {path.parent for path in out.rglob("*.onnx")}:
        assert (folder / "config.json").is_file()
        places = {}
        for path in folder.glob("*.onnx"):
            for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
                found = {entry.key: entry.value for entry in tensor.external_data}
                if found:
                    assert found["location"] == "model.onnx_data"
                    places[tensor.name] = (int(found["offset"]), int(found["length"]))
        ends = [0] + [offset + length for offset, length in sorted(places.values())]
        starts = [offset for offset, _ in sorted(places.values())]
        assert all(start >= end and start % 4096 == 0 for start, end in zip(starts, ends, strict=False))
        assert ends[-1] == (folder / "model.onnx_data").stat().st_size


def test_the_manifest_names_everything(out: Path) -> None:
    manifest = json.loads((out / "bridle_export.json").read_text())
    assert manifest["features"] == ["residuals", "regions", "maps"]
    assert set(manifest["graphs"]) >= {f"controlnet/{c.name}" for c in CONTROLS[:2]} | {"t2i_adapter/t2iadapter-sketch"}
    for place, graphs in manifest["graphs"].items():
        for name, graph in graphs.items():
            session = Session(out / place / f"{name}.onnx")
            assert list(graph["inputs"]) == session.required
            assert set(graph["optional_inputs"]) == set(session.optional)
            assert list(graph["outputs"]) == session.names
            assert all((out / place / file).is_file() for file in graph["variants"].values())
            assert graph["variants"].keys() == manifest["variant_steps"].keys()
    loaded = {
        out / place / file
        for place, graphs in manifest["graphs"].items()
        for name, graph in graphs.items()
        for file in (f"{name}.onnx", *graph["variants"].values())
    }
    assert loaded == set(out.rglob("*.onnx"))


def test_the_documentation_names_every_input_and_output(out: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text()
    manifest = json.loads((out / "bridle_export.json").read_text())
    for place, graphs in manifest["graphs"].items():
        for graph in graphs.values():
            for name in (*graph["inputs"], *graph["optional_inputs"], *graph["outputs"]):
                stem, _, number = name.partition(".")
                assert re.search(rf"`{stem}(\.[nK])?`" if number else rf"`{stem}`", text), (place, name)


def test_what_the_index_lists_besides_networks_is_copied(tmp_path: Path) -> None:
    """optimum loads the feature extractor that published SD 1.x folders list, and fails where it is missing."""
    model = Path(shutil.copytree(POCKET, tmp_path / "model"))
    (model / "feature_extractor").mkdir()
    (model / "feature_extractor/preprocessor_config.json").write_text('{"crop_size": 224}')
    export(model, tmp_path / "out")
    assert (tmp_path / "out/feature_extractor/preprocessor_config.json").read_text() == '{"crop_size": 224}'


def test_controls_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dots in them, as the folder one is in, and as ids in the cache, whose folders are named by hashes."""
    write_new_model("tiny", tmp_path / "model", controlnet=True, t2i=True, ip_adapter="base")
    (tmp_path / "model/ip-adapter").rename(tmp_path / "ip-sd1.5")
    (tmp_path / "model/t2i-adapter").rename(tmp_path / "0123abcd")
    original = exporting.locate
    cached = {Path("owner/sketch-sd1.5"): tmp_path / "0123abcd"}
    monkeypatch.setattr(exporting, "locate", lambda path: original(cached.get(path, path)))
    monkeypatch.chdir(tmp_path / "model/controlnet")
    export(tmp_path / "model", tmp_path / "out", controls=[".", "owner/sketch-sd1.5", tmp_path / "ip-sd1.5"])
    kinds = {kind: left(tmp_path / "out" / kind) for kind in ("controlnet", "t2i_adapter", "ip_adapter")}
    assert kinds == {"controlnet": ["controlnet"], "t2i_adapter": ["sketch-sd1.5"], "ip_adapter": ["ip-sd1.5"]}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(POCKET, tmp_path / "whole")
    assert left(tmp_path) == ["whole"]
    original = exporting._write_part

    def fails_late(root: Path, part: exporting.Part, *rest: object) -> object:
        if part.name == "vae_decoder":
            raise KeyboardInterrupt
        return original(root, part, *rest)

    monkeypatch.setattr(exporting, "_write_part", fails_late)
    with pytest.raises(KeyboardInterrupt):
        export(POCKET, tmp_path / "out")
    assert left(tmp_path) == ["whole"]


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(ExportError, match=r"out: needs \d+ MiB, 1 MiB are free"):
        export(POCKET, tmp_path / "out")
    assert left(tmp_path) == []


def test_a_disk_that_fills_up_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "_write_part", full)
    with pytest.raises(ExportError, match="out: cannot be written: No space left on device"):
        export(POCKET, tmp_path / "out")
    assert left(tmp_path) == []


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_a_link_is_not_written_to(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to(place)
    with pytest.raises(RequestError, match=r"^out: .*no link"):
        export(POCKET, tmp_path / "out")
    assert left(tmp_path) == ["empty", "out"] and left(tmp_path / "empty") == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"features": ["region"]}, "features"),
        ({"precision": "int8"}, "precision"),
        ({"opset": 17}, "opset"),
        ({"controls": [CONTROLS[0], CONTROLS[0]]}, "controls"),
    ],
)
def test_bad_arguments(options: dict, field: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"^{field}: "):
        export(POCKET, tmp_path / "out", **options)
    assert left(tmp_path) == []


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RequestError, match=r"^out: "):
        export(POCKET, tmp_path)
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize("opset", [23, 24])
def test_sdxl_in_half_precision_with_image_prompt(opset: int, tmp_path: Path) -> None:
    write_new_model("tiny-xl", tmp_path / "model", controlnet=True, ip_adapter="plus")
    controls = [tmp_path / "model/controlnet", tmp_path / "model/ip-adapter"]
    export(tmp_path / "model", tmp_path / "out", controls=controls, precision="fp16", opset=opset)
    for path in sorted((tmp_path / "out").rglob("*.onnx")):
        assert Session(path).names
    types = {i.name: i.type for i in Session(tmp_path / "out/unet/model.onnx").session.get_inputs()}
    assert types["sample"] == "tensor(float16)" and types["timestep"] == "tensor(float)"
    assert Session(tmp_path / "out/vae_decoder/model.onnx").session.get_inputs()[0].type == "tensor(float)"


@pytest.mark.parametrize(
    ("modules", "works"), [("bridle, bridle.cli, bridle_exporters", True), ("onnx", False), ("onnxruntime", False)]
)
def test_importing_bridle_needs_no_onnx(modules: str, works: bool) -> None:
    """Beside the control: neither of them can be imported there."""
    hidden = f"import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None; import {modules}"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    assert (done.returncode == 0) == works and ("ModuleNotFoundError" in done.stderr) != works, done.stderr


def test_the_example_makes_the_controlled_image(out: Path, tmp_path: Path) -> None:
    """From a folder as that of published SD 1.5: no tokenizer.json, and a padding token that is not the tokenizer's."""
    root = Path(__file__).parents[2]
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    (folder / "tokenizer/tokenizer.json").unlink()
    config = json.loads((folder / "text_encoder/config.json").read_text())
    (folder / "text_encoder/config.json").write_text(json.dumps({**config, "pad_token_id": 1}))
    picture = tmp_path / "image.png"
    edges = root / "docs/images/edges.png"
    script = root / "examples/onnx_controlnet.py"
    subprocess.run([sys.executable, str(script), str(folder), CONTROLS[0].name, str(edges), str(picture)], check=True)
    import numpy as np
    from PIL import Image

    lines = script.read_text().splitlines()
    assert len(lines) < 60
    noise = np.random.default_rng(1).standard_normal((1, 4, 16, 16)).astype(np.float32)
    request = bridle.Request(
        "a yellow star and a purple circle on a blue background",
        latents=noise,
        num_inference_steps=20,
        guidance_scale=5.0,
        controls=[bridle.ControlNet("canny", image=edges, scale=0.8)],
    )
    result = bridle.load(backend="reference").sample(request)
    difference = np.abs(np.asarray(result.images[0], float) - np.asarray(Image.open(picture), float))
    assert difference.max() <= 3
