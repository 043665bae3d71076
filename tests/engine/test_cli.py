"""The command line, and replaying an image from its metadata."""

from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from runs import picture, rel_l2
from safetensors.torch import save_file
from typer.testing import CliRunner

import bridle
from bridle.backends.choose import BACKENDS, unavailable, unserved
from bridle.cli import app
from bridle.rows import Primitive, Rows
from bridle.weights import key_maps, load_adapter, load_controlnet
from bridle_kernels._core import active_isa


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_generate_and_replay(folder: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "edges.png")
    first, plain, again = (tmp_path / name for name in ("first.png", "plain.png", "again.png"))
    common = ["generate", "a red circle", "--model", str(folder), "--steps", "3", "--seed", "4"]
    control = f"controlnet={tmp_path / 'edges.png'},scale=0.8,end=0.9"
    for arguments in (
        [*common, "-o", str(first), "--control", control],
        [*common, "-o", str(plain)],
        ["generate", "--replay", str(first), "-o", str(again)],
    ):
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == 0, outcome.output
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(plain))
    assert "Seed: 4" in Image.open(first).text["parameters"]


def test_bad_control_is_one_line(folder: Path) -> None:
    outcome = CliRunner().invoke(app, ["generate", "x", "--model", str(folder), "--control", "canny"])
    assert outcome.exit_code == 2
    assert "control" in outcome.output and "Traceback" not in outcome.output


def test_doctor_says_what_every_backend_serves_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = CliRunner().invoke(app, ["doctor"])
    assert outcome.exit_code == 0
    lines = outcome.output.splitlines()
    for name in BACKENDS:
        (line,) = [line for line in lines if line.startswith(f"backend {name}: ")]
        reason = unavailable(name)
        assert line.endswith(reason or "available")
        told = [line for line in lines[lines.index(line) + 1 :] if line.startswith("  P")][: len(Primitive)]
        for primitive, line in zip(Primitive, told if reason is None else (), strict=reason is None):
            assert line == f"  {primitive.value}: {unserved(name, primitive) or 'served'}"
    assert unserved("reference", Primitive.RESIDUALS) is None
    assert "P14" in str(unserved("reference", Primitive.WEIGHT_DELTAS))
    assert f"native ops: {active_isa()}" in outcome.output
    assert "providers 'cpu'" in next(line for line in lines if line.startswith("ONNX Runtime: "))
    monkeypatch.setenv("BRIDLE_FORCE_ISA", "mmx")
    assert "not usable: BRIDLE_FORCE_ISA: got 'mmx'" in CliRunner().invoke(app, ["doctor"]).output


def test_a_backend_refuses_a_primitive_by_name(engine: bridle.Engine) -> None:
    every = frozenset(Primitive)
    served = frozenset(p for p in every if unserved("reference", p) is None)
    assert engine.backend.supports(served) is None
    reason = engine.backend.supports(every)
    assert all((primitive.value in str(reason)) is (primitive not in served) for primitive in every)
    rows = Rows(torch.zeros(1, 4, 8, 8), torch.zeros(1, 1), (), weight_deltas=object())
    with pytest.raises(
        bridle.UnsupportedError, match=f"backend '{engine.backend.name}' does not serve P14 weight deltas"
    ):
        engine.backend.evaluate(rows)


def test_backends_that_cannot_be_had(folder: Path) -> None:
    for name in ("cuda", "cpu", "ort"):
        if unavailable(name) is not None:
            with pytest.raises(bridle.UnsupportedError, match=name):
                bridle.load(folder, backend=name)
    for field, value in (("backend", "tpu"), ("device", "warp"), ("device", "meta"), ("dtype", "int8"), ("dtype", 3)):
        with pytest.raises(bridle.RequestError) as caught:
            bridle.load(folder, **{field: value})
        assert caught.value.field == field


def test_every_request_field_has_an_option() -> None:
    from dataclasses import fields

    command = typer.main.get_command(app).commands["generate"]
    offered = {name for parameter in command.params for name in (parameter.name, *parameter.opts)}
    renamed = {
        "prompt": "prompt",
        "num_inference_steps": "--steps",
        "controls": "--control",
        "regions": "--region",
        "attention": "--heatmap",
        "crops_coords_top_left": "--crop",
        "negative_crops_coords_top_left": "--negative-crop",
        "output_type": "--save-latents",
    }
    for item in fields(bridle.Request):
        assert renamed.get(item.name, "--" + item.name.replace("_", "-")) in offered, item.name


def test_control_options_and_scheduler_json(folder: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "edges.png")
    picture(4).save(tmp_path / "mask.png")
    options = "scale=0.7,start=0.1,end=0.9,resize=crop,guess_mode=true,guess_scales=official,mask=" + str(
        tmp_path / "mask.png"
    )
    latents = tmp_path / "latents.npy"
    arguments = [
        *("generate", "x", "--model", str(folder), "--steps", "2", "--seed", "3", "--seed", "9", "--num-images", "2"),
        *("--control", f"controlnet={tmp_path / 'edges.png'},{options}", "-o", str(tmp_path / "out.png")),
        *("--scheduler", '{"_class_name": "EulerDiscreteScheduler"}', "--save-latents", str(latents)),
    ]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert np.load(latents).shape == (2, 4, 16, 16) and (tmp_path / "out-2.png").exists()
    outcome = CliRunner().invoke(app, [*arguments, "--control", f"controlnet={tmp_path / 'edges.png'},colour=red"])
    assert outcome.exit_code == 2 and "layer_weights" in outcome.output


def test_controls_may_be_files(folder: Path, engine: bridle.Engine, tmp_path: Path) -> None:
    """The same picture as from the folders they were written from; the keys say which kind a file is.

    To the rounding of a matrix product, which depends on where in a mapped file its weights lie.
    """
    base, place = engine.backend.model, torch.device("cpu")
    net = load_controlnet(folder / "controlnet", dtype=None, device=place, base=base)
    adapter = load_adapter(folder / "t2i-adapter", dtype=None, device=place, base=base)
    for name, tensors in (
        ("net", key_maps.to_official(net.tensors, key_maps.controlnet_names(net.config), "control_model.")),
        ("adapter", key_maps.to_official(adapter.tensors, key_maps.adapter_names(adapter.config))),
    ):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
    picture().save(tmp_path / "edges.png")

    def made(*control: str) -> torch.Tensor:
        target = tmp_path / "latents.npy"
        common = ["generate", "x", "--model", str(folder), "--steps", "3", "-o", str(tmp_path / "out.png")]
        outcome = CliRunner().invoke(app, [*common, "--save-latents", str(target), *control])
        assert outcome.exit_code == 0, outcome.output
        return torch.from_numpy(np.load(target))

    plain = made()
    for file, control in (("net", "controlnet"), ("adapter", "t2i-adapter")):
        sources = (tmp_path / f"{file}.safetensors", control)
        from_file, from_folder = (made("--control", f"{source}={tmp_path / 'edges.png'}") for source in sources)
        assert rel_l2(from_file, from_folder) < 1e-5
        assert rel_l2(from_file, plain) > 1e-3


def test_what_a_command_line_may_get_wrong(folder: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "edges.png")
    edges = tmp_path / "edges.png"
    plain = ["generate", "x", "--model", str(folder), "--steps", "1"]
    for arguments, named in (
        (["-o", str(tmp_path / "missing" / "a.png")], "output"),
        (["-o", str(tmp_path / "a.jpg")], "output"),
        (["--save-latents", str(tmp_path / "a.txt")], "save_latents"),
        (["--control", f"t2i-adapter={edges},guess_mode=true"], "guess_mode"),
        (["--control", f"no-such={edges}"], "no-such"),
        (["--control", f"controlnet={edges},scale=loud"], "scale"),
        (["--control", f"controlnet={tmp_path / 'none.png'}"], "ControlNet.image"),
        (["--scheduler", "{"], "scheduler"),
        (["--latents", str(edges)], "latents"),
        (["--prediction-type", "epsilon"], "prediction_type"),
        (["--image", str(tmp_path / "none.png")], "image"),
        (["--backend", "cuda"], "cuda"),
    ):
        outcome = CliRunner().invoke(app, [*plain, "-o", str(tmp_path / "o.png"), *arguments])
        assert outcome.exit_code == 2, (arguments, outcome.output)
        assert named in outcome.output and len(outcome.output.strip().splitlines()) == 1, outcome.output
    assert not list(tmp_path.glob("[!e]*.png"))
