"""`backend="cpu"`: every network of every kind of pipeline is a plan, and no code of the reference computes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import half_mask, picture, with_input_channels, with_tiny_autoencoder

import bridle
from bridle.new_model import write_new_model
from bridle_kernels.native_layout import NativeLayout
from bridle_kernels.ops import ReferenceOps
from bridle_kernels.recorder import NotRecordableError

VIEWS = ("tokens", "columns", "image", "name_point", "skip_connection")
"""What gives another view of a tensor and computes nothing."""

Fallbacks = list[str]


@pytest.fixture
def fallbacks(monkeypatch: pytest.MonkeyPatch) -> Fallbacks:
    """Names of the reference ops that were called, and why networks could not be recorded, from now on."""
    found: Fallbacks = []

    def watched(name: str) -> Callable[..., Any]:
        op = getattr(ReferenceOps, name)

        def call(*arguments: Any, **named: Any) -> Any:
            found.append(name)
            return op(*arguments, **named)

        return call

    for name in vars(ReferenceOps):
        if not name.startswith("_") and name not in VIEWS:
            monkeypatch.setattr(ReferenceOps, name, staticmethod(watched(name)))

    def refused(self: NotRecordableError, reason: str) -> None:
        found.append(reason)
        Exception.__init__(self, reason)

    monkeypatch.setattr(NotRecordableError, "__init__", refused)
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of every kind."""
    root = tmp_path_factory.mktemp("models")
    controls = {"controlnet": True, "t2i": True}
    write_new_model("tiny", root / "sd1", seed=3, **controls, ip_adapter="base")
    write_new_model("tiny-xl", root / "sdxl", seed=4, **controls, ip_adapter="plus")
    with_input_channels(root / "sd1", root / "inpainting", 9)
    with_tiny_autoencoder(root / "sd1", root / "taesd")
    shutil.copytree(root / "sd1", root / "tiles")
    config = root / "tiles/vae/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 32}))
    return {path.name: path for path in root.iterdir()}


SMALL: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "dull",
    "seed": 1,
    "width": 64,
    "height": 48,
    "output_type": "np",
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "text to image": ("sd1", {}),
    "text to image, xl": ("sdxl", {}),
    "four images": ("sd1", {"num_images": 4}),
    "image to image": ("sd1", {"image": picture(4), "strength": 0.7}),
    "inpainting": ("sd1", {"image": picture(4), "mask_image": half_mask(64)}),
    "inpainting, nine channels": ("inpainting", {"image": picture(4), "mask_image": half_mask(64)}),
    "two ControlNets": (
        "sd1",
        {
            "controls": [
                bridle.ControlNet("controlnet", picture(1)),
                bridle.ControlNet("controlnet", picture(2), mask=half_mask(64), guess_mode=True),
            ]
        },
    ),
    "ControlNet, xl": ("sdxl", {"controls": [bridle.ControlNet("controlnet", picture(1))]}),
    "adapter": ("sd1", {"controls": [bridle.T2IAdapter("t2i-adapter", picture(2))]}),
    "adapter, xl": ("sdxl", {"controls": [bridle.T2IAdapter("t2i-adapter", picture(2))]}),
    "image prompt, base": ("sd1", {"controls": [bridle.ImagePrompt("ip-adapter", picture(3))]}),
    "image prompt, plus": ("sdxl", {"controls": [bridle.ImagePrompt("ip-adapter", picture(3))]}),
    "regions in cross-attention": ("sd1", {"regions": [bridle.Region("a blue star", (0.0, 0.0, 0.5, 1.0))]}),
    "regions as rows": (
        "sd1",
        {"regions": [bridle.Region("a blue star", (0.0, 0.0, 0.5, 1.0))], "region_mode": "latent"},
    ),
    "maps": ("sdxl", {"attention": [bridle.CaptureMaps(["circle"])]}),
    "prompt edit": ("sd1", {"attention": [bridle.PromptEdit("a blue circle", cross=0.5, self=0.5)]}),
    "tiny autoencoder": ("taesd", {"image": picture(4), "strength": 0.7}),
    "tiles": ("tiles", {"image": picture(4), "strength": 0.7, "vae_tiling": True}),
}


def run(folder: Path, dtype: str, changes: dict[str, Any]) -> None:
    engine = bridle.load(folder, backend="cpu", dtype=dtype)
    result = engine.sample(bridle.Request(**{**SMALL, **changes}))
    assert isinstance(result, bridle.Result) and np.isfinite(np.asarray(result.images)).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_network_is_a_plan(folders: dict[str, Path], fallbacks: Fallbacks, dtype: str, name: str) -> None:
    model, changes = CASES[name]
    run(folders[model], dtype, changes)
    assert not fallbacks


@pytest.mark.parametrize("op", ["activation", "concat"])
def test_an_op_without_a_kernel_is_noticed(
    folders: dict[str, Path], fallbacks: Fallbacks, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    """The control: without its kernel the reference computes it, and the network runs op by op."""
    monkeypatch.delattr(NativeLayout, op)
    run(folders["sd1"], "float32", {})
    assert op in fallbacks and "an operation that no kernel of the core does" in fallbacks
