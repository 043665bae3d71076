"""Folders of random weights: complete, reproducible, loadable here and in diffusers, no layer at zero."""

from pathlib import Path

import bridle
import numpy as np
import pytest
import torch
from bridle.errors import RequestError
from bridle.new_model import write_new_model
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from PIL import Image
from safetensors.torch import load_file

ARGUMENTS = {"prompt": "a red circle", "negative_prompt": "blue", "num_inference_steps": 20, "guidance_scale": 5.0}


@pytest.fixture(scope="module", params=["tiny", "tiny-xl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "model"
    write_new_model(request.param, path, seed=3, controlnet=True, t2i=True)
    return path


def is_xl(folder: Path) -> bool:
    return (folder / "tokenizer_2").exists()


def sample(folder: Path, *controls: object) -> torch.Tensor:
    request = bridle.Request(
        **{name: ARGUMENTS[name] for name in ARGUMENTS}, seed=5, controls=controls, output_type="latent"
    )
    return bridle.load(folder).sample(request).latents


def picture(side: int = 128) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8))


def theirs(pipeline: object, **arguments: object) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    return pipeline(**ARGUMENTS, **arguments, generator=generator, output_type="latent").images


def rel_l2(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


def test_no_layer_is_zero(folder: Path) -> None:
    files = list(folder.rglob("*.safetensors"))
    assert len(files) == (6 if is_xl(folder) else 5)
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


def test_text_to_image_as_diffusers(folder: Path) -> None:
    kind = StableDiffusionXLPipeline if is_xl(folder) else StableDiffusionPipeline
    reference = theirs(kind.from_pretrained(folder))
    assert rel_l2(sample(folder), reference) <= 1e-3


def test_adapter_as_diffusers(folder: Path) -> None:
    kind = StableDiffusionXLAdapterPipeline if is_xl(folder) else StableDiffusionAdapterPipeline
    adapter = T2IAdapter.from_pretrained(folder / "t2i-adapter")
    reference = theirs(
        kind.from_pretrained(folder, adapter=adapter),
        image=picture(),
        adapter_conditioning_scale=0.7,
        height=128,
        width=128,
    )
    ours = sample(folder, bridle.T2IAdapter("t2i-adapter", picture(), scale=0.7))
    assert rel_l2(ours, reference) <= 1e-3
    assert rel_l2(ours, sample(folder)) > 1e-2


def test_xl_controlnet_as_diffusers(folder: Path) -> None:
    if not is_xl(folder):
        ours = sample(folder, bridle.ControlNet("controlnet", picture()))
        assert rel_l2(ours, sample(folder)) > 1e-2
        return
    net = ControlNetModel.from_pretrained(folder / "controlnet")
    pipeline = StableDiffusionXLControlNetPipeline.from_pretrained(folder, controlnet=net)
    reference = theirs(pipeline, image=picture(), controlnet_conditioning_scale=0.6)
    assert rel_l2(sample(folder, bridle.ControlNet("controlnet", picture(), scale=0.6)), reference) <= 1e-3
