"""Pipelines of 20 steps of SD 2.x and SDXL through exported graphs equal the reference."""

from pathlib import Path

import pytest
import torch
from control_cases import CONTROLS, Changes, asked, distance, write_sd2
from runs import picture

import bridle
from bridle.new_model import write_new_model
from bridle_exporters import export

FEATURES = ("residuals", "regions", "maps")
NET = bridle.ControlNet("controlnet", picture(1), scale=0.8)
Engines = tuple[bridle.Engine, bridle.Engine]

SD2: dict[str, Changes] = {
    "text-to-image": {},
    "ControlNet": {"controls": [NET]},
    "regions and a bias": {**CONTROLS["attention regions"], **CONTROLS["InjectMap bias"]},
}
XL: dict[str, Changes] = {
    "ControlNet and image prompt": {
        "negative_prompt": None,
        "controls": [NET, bridle.ImagePrompt("ip-adapter", picture(3))],
    },
    **{name: CONTROLS[name] for name in ("T2IAdapter", "inpainting", "CaptureMaps", "InjectMap bias")},
    "regions": {**CONTROLS["attention regions"], "controls": [NET]},
}


def engines(model: Path, controls: list[str]) -> Engines:
    """The graphs and the reference."""
    out = model.parent / "out"
    export(model, out, controls=[model / name for name in controls], features=FEATURES)
    return bridle.load(out), bridle.load(model, backend="reference")


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    model = tmp_path_factory.mktemp("sd2") / "model"
    write_sd2(model)
    return engines(model, ["controlnet"])


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    model = tmp_path_factory.mktemp("xl") / "model"
    write_new_model("tiny-xl", model, seed=4, controlnet=True, t2i=True, ip_adapter="plus")
    return engines(model, ["controlnet", "t2i-adapter", "ip-adapter/ip-adapter.safetensors"])


def assert_equal(pair: Engines, changes: Changes) -> None:
    ours, theirs = (engine.sample(asked({"num_inference_steps": 20}, changes)) for engine in pair)
    assert distance(ours, theirs) < 1e-3
    for word, wanted in (theirs.maps or {}).items():
        torch.testing.assert_close(torch.as_tensor(ours.maps[word]), torch.as_tensor(wanted), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SD2)
def test_sd2(name: str, sd2: Engines) -> None:
    assert_equal(sd2, SD2[name])


@pytest.mark.parametrize("name", XL)
def test_xl(name: str, xl: Engines) -> None:
    assert_equal(xl, XL[name])
