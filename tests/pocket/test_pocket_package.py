"""A trained model becomes the package's: copied whole, described by its own scores, the same in diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
)
from PIL import Image

import bridle
from bridle.engine import POCKET
from controls import FOLDERS, HINTS
from model_card import write_card
from package import LARGEST, PARTS, check_scores, copy_model, size
from weights_hash import weights_hash
from world import SIZE, render, seeded_scene

PROMPT = "a red circle left of a blue star"
STEPS, GUIDANCE, SEED = 4, 5.0, 3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, as the training script leaves it."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(POCKET, run / "pocket", ignore=shutil.ignore_patterns("README.md"))
    entries = [
        {"stage": "denoiser", "step": step, "pictures": 32 * step, "seconds": 60.0 * step, "loss": 1 / step}
        for step in (1, 2)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return run / "pocket"


@pytest.fixture(scope="module")
def packaged(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("package") / "pocket"
    copy_model(exported, target)
    return target


def report(folder: Path) -> dict[str, Any]:
    """What the ruler writes, with one row."""
    columns = ("objects", "counting", "relation", "placement IoU", "edge F1", "mask IoU", "sketch F1")
    return {
        "model_sha256": weights_hash(folder),
        "prompts": 200,
        "steps": 30,
        "guidance_scale": 5.0,
        "scheduler": "DDIMScheduler",
        "dtype": "float32",
        "rows": {"canny": {name: {"mean": 0.25, "error": 0.01, "count": 200} for name in columns}},
        "diversity": {"seeds of one prompt": 0.5, "unrelated scenes": 0.75},
    }


def test_the_package_holds_every_part_and_is_small(packaged: Path) -> None:
    assert {entry.name for entry in packaged.iterdir()} == {*PARTS, "model_index.json"}
    assert 24 * 2**20 < size(packaged) < LARGEST
    configs = [file.read_text() for file in packaged.rglob("*.json")]
    assert not any("_name_or_path" in text or "/tmp" in text for text in configs)
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in packaged.rglob("*") if file.is_file())


def test_weights_are_the_exported_ones_and_half_precision(exported: Path, packaged: Path) -> None:
    from safetensors.torch import load_file

    assert weights_hash(packaged) == weights_hash(exported)
    for file in packaged.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(file).values() if value.is_floating_point()} == {torch.float16}, file


def test_scores_of_other_weights_are_refused(exported: Path, packaged: Path) -> None:
    check_scores(exported, report(packaged))
    with pytest.raises(ValueError, match="scores of weights"):
        check_scores(exported, {**report(packaged), "model_sha256": weights_hash(packaged / "vae")})


def test_a_missing_control_is_named(exported: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported, run, ignore=shutil.ignore_patterns("controlnet-*", "t2iadapter-*"))
    with pytest.raises(ValueError, match="lacks controlnet-canny, controlnet-seg, t2iadapter-sketch"):
        copy_model(run, tmp_path / "pocket")
    assert not (tmp_path / "pocket").exists()


def test_the_card_tells_scores_data_and_size(exported: Path, packaged: Path) -> None:
    write_card(packaged, report(packaged), [exported.parent / "log.jsonl"] * 2, size(packaged))
    card = (packaged / "README.md").read_text()
    (packaged / "README.md").unlink()
    for wanted in ("license: apache-2.0", "200 held-out scenes", "| canny | 0.25 |", "0.50 (unrelated scenes: 0.75)"):
        assert wanted in card
    assert "| 1 | denoiser | 2 | 64 | 2.0 | 0.5000 |\n| 2 | denoiser | 2 |" in card
    assert "crescent" in card and "purple" in card and " MB" in card and "{" not in card


def hint(name: str) -> Image.Image:
    scene = seeded_scene(2)
    return Image.fromarray(HINTS[name](scene, render(scene)))


def controlnet(name: str, folder: Path) -> tuple[Any, dict[str, Any], list[Any]]:
    control = ControlNetModel.from_pretrained(folder / FOLDERS[name])
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=control, safety_checker=None)
    return pipeline, {"image": hint(name)}, [bridle.ControlNet(name, hint(name))]


def sketch(folder: Path) -> tuple[Any, dict[str, Any], list[Any]]:
    adapter = T2IAdapter.from_pretrained(folder / FOLDERS["sketch"])
    pipeline = StableDiffusionAdapterPipeline.from_pretrained(folder, adapter=adapter, safety_checker=None)
    return pipeline, {"image": hint("sketch")}, [bridle.T2IAdapter("sketch", hint("sketch"))]


def plain(folder: Path) -> tuple[Any, dict[str, Any], list[Any]]:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None), {}, []


Loader = Callable[[Path], tuple[Any, dict[str, Any], list[Any]]]


LOADERS: dict[str, Loader] = {
    "plain": plain,
    "canny": partial(controlnet, "canny"),
    "seg": partial(controlnet, "seg"),
    "sketch": sketch,
}


@pytest.mark.parametrize("kind", LOADERS)
def test_diffusers_loads_the_folder_and_makes_the_same_image(packaged: Path, kind: str) -> None:
    pipeline, inputs, controls = LOADERS[kind](packaged)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    theirs = pipeline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, output_type="np", **inputs
    ).images[0]
    engine = bridle.load(packaged)
    common = {"seed": SEED, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    ours, bare = (
        np.asarray(engine.sample(bridle.Request(PROMPT, controls=chosen, **common)).images)[0]
        for chosen in (controls, [])
    )
    assert theirs.shape == ours.shape == (SIZE, SIZE, 3)
    assert np.abs(ours - theirs).max() < 2e-3
    if controls:
        assert np.abs(bare - theirs).max() > 0.05
