"""Bad requests (reliability catalogue D to H): one typed error that names the field, before any network runs."""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import latents, picture, request

import bridle
from bridle.errors import LimitError, RequestError

NAN = math.nan
GREY = np.full((128, 128, 3), 128, np.uint8)


class RefusingOps:
    """Ops of which none may be called."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"{name} was called")


@pytest.fixture
def idle_engine(folder: Path) -> bridle.Engine:
    """An engine in which any network call fails the test."""
    engine = bridle.load(folder)
    engine.backend.ops = RefusingOps()
    return engine


def controlnet(**fields: Any) -> bridle.ControlNet:
    return bridle.ControlNet(**{"model": "controlnet", "image": GREY, **fields})


def adapter(**fields: Any) -> bridle.T2IAdapter:
    return bridle.T2IAdapter(**{"model": "t2i-adapter", "image": GREY, **fields})


FIELDS = [
    ("prompt", None),
    ("prompt", b"bytes"),
    ("prompt", ["a", "b"]),
    ("prompt", "\ud800"),
    ("prompt", "(a:nan)"),
    ("prompt", "(a:1e999)"),
    ("prompt", "x" * 1_000_000),
    ("prompt", "(" * 100_000),
    ("negative_prompt", 3),
    ("prompt_2", "only SDXL"),
    ("prompt_syntax", "comfy"),
    ("num_images", 0),
    ("num_images", 10**9),
    ("num_images", 1.0),
    ("num_images", True),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 1.5),
    ("seed", [1, 2, 3]),
    ("width", 0),
    ("width", 7),
    ("width", 63),
    ("width", 2**31),
    ("width", 2**63),
    ("height", 12),
    ("height", "128"),
    ("num_inference_steps", 0),
    ("num_inference_steps", -1),
    ("num_inference_steps", 1001),
    ("num_inference_steps", 10**9),
    ("num_inference_steps", 1.5),
    ("num_inference_steps", NAN),
    ("num_inference_steps", "20"),
    ("guidance_scale", NAN),
    ("guidance_scale", math.inf),
    ("guidance_scale", -5),
    ("guidance_scale", 1e308),
    ("guidance_scale", 10**400),
    ("eta", NAN),
    ("strength", 0.5),
    ("clip_skip", 99),
    ("clip_skip", 3),
    ("scheduler", "no such"),
    ("scheduler", ""),
    ("scheduler", "../x"),
    ("scheduler", "x" * 1_000_000),
    ("scheduler", 3),
    ("scheduler", {"_class_name": "os.system"}),
    ("scheduler", {"_class_name": "DDIMScheduler", "clip_sample": True}),
    ("scheduler", {"_class_name": "DDIMScheduler", "nonsense": 1}),
    ("mask_image", GREY),
    ("depth_image", GREY),
    ("image", np.zeros((0, 0, 3), np.uint8)),
    ("image", np.zeros((1, 1, 3), np.uint8)),
    ("image", np.zeros((16, 16, 2), np.uint8)),
    ("image", np.zeros((16, 16, 3), np.float32) + NAN),
    ("image", np.zeros((16, 16, 3), np.float32) + 255.0),
    ("image", np.zeros((16, 16, 3), np.complex64)),
    ("image", np.zeros((16, 16, 3), object)),
    ("image", "no/such/file.png"),
    ("image", [GREY]),
    ("image", torch.zeros(2, 3, 16, 16)),
    ("image", torch.zeros(3, 16, 16).to_sparse()),
    ("latents", torch.zeros(1, 4, 16, 15)),
    ("latents", torch.zeros(2, 4, 16, 16)),
    ("latents", torch.full((1, 4, 16, 16), NAN)),
    ("latents", "noise"),
    ("controls", None),
    ("controls", [None]),
    ("controls", [[controlnet()]]),
    ("controls", [controlnet()] * 9),
    ("original_size", (1, 2)),
    ("crops_coords_top_left", (1,)),
    ("vae_tiling", "yes"),
    ("output_type", "jpeg"),
]


def label(case: object) -> str:
    return ascii(case)[:40] if isinstance(case, (str, int, float, tuple, list, type(None))) else type(case).__name__


@pytest.mark.parametrize(("field", "value"), FIELDS, ids=label)
def test_bad_field(idle_engine: bridle.Engine, field: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        idle_engine.sample(request(**{field: value}))
    message = str(caught.value)
    assert caught.value.field.startswith(field)
    assert len(message) <= 512 and message.isprintable() and not re.search(r"0x[0-9a-f]{6,}", message)


CONTROL_FIELDS = [
    ("image", None),
    ("image", np.zeros((4, 4, 3), np.uint8)),
    ("scale", NAN),
    ("scale", math.inf),
    ("scale", -1),
    ("scale", 1e9),
    ("scale", [0.5]),
    ("start", -0.1),
    ("start", 1.0),
    ("start", NAN),
    ("end", 1.1),
    ("mask", np.full((16, 16), NAN, np.float32)),
    ("mask", np.full((16, 16), 2.0, np.float32)),
    ("resize", "fit"),
    ("model", ""),
    ("model", 3),
    ("model", "a\0b"),
    ("model", "x" * 10_000),
]


@pytest.mark.parametrize("make", [controlnet, adapter])
@pytest.mark.parametrize(("field", "value"), CONTROL_FIELDS, ids=label)
def test_bad_control_field(make: Any, field: str, value: object) -> None:
    with pytest.raises(RequestError) as caught:
        make(**{field: value})
    assert f".{field}" in caught.value.field


def test_bad_controlnet_fields(idle_engine: bridle.Engine) -> None:
    for fields in ({"guess_mode": 1}, {"guess_scales": "other"}, {"layer_weights": [NAN]}, {"start": 0.5, "end": 0.5}):
        with pytest.raises(RequestError):
            controlnet(**fields)
    with pytest.raises(RequestError, match="layer_weights"):
        idle_engine.sample(request(controls=[controlnet(layer_weights=[1.0, 2.0])]))
    with pytest.raises(RequestError, match="another resize mode"):
        idle_engine.sample(request(controls=[controlnet(image=np.zeros((64, 64, 3), np.uint8), resize="exact")]))


def test_controls_of_other_kinds_or_models(idle_engine: bridle.Engine, xl_folder: Path) -> None:
    for control in (
        controlnet(model="t2i-adapter"),
        adapter(model="controlnet"),
        controlnet(model=str(xl_folder / "controlnet")),
        controlnet(model="no-such-control"),
    ):
        with pytest.raises(bridle.ModelLoadError):
            idle_engine.sample(request(controls=[control]))


def test_unknown_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        request(nonsense=1)


def test_one_bad_request_of_a_list_stops_none_half_way(idle_engine: bridle.Engine) -> None:
    with pytest.raises(RequestError, match="scheduler"):
        idle_engine.sample([request(), request(scheduler="no such")])
    for requests in ([], [3], 3):
        with pytest.raises(RequestError, match="requests"):
            idle_engine.sample(requests)


def test_bombs_and_truncated_files(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    (tmp_path / "bomb.png").write_bytes(bomb.getvalue())
    with pytest.raises(LimitError):
        request(image=tmp_path / "bomb.png")
    whole = io.BytesIO()
    picture().save(whole, "PNG")
    for cut in range(0, len(whole.getvalue()) - 64, len(whole.getvalue()) // 16):
        (tmp_path / "cut.png").write_bytes(whole.getvalue()[:cut])
        with pytest.raises(RequestError):
            request(image=tmp_path / "cut.png")


def test_picture_forms_that_are_equal_give_equal_bytes(engine: bridle.Engine) -> None:
    base = np.asarray(picture())
    padded = np.zeros((128, 256, 3), np.uint8)
    padded[:, ::2] = base
    forms = [base, padded[:, ::2], np.asfortranarray(base), base[::-1][::-1], Image.fromarray(base)]
    first, *others = [latents(engine, num_inference_steps=2, image=form, strength=0.5) for form in forms]
    assert all(torch.equal(first, other) for other in others)
    readonly = base.copy()
    readonly.setflags(write=False)
    kept = request(image=readonly)
    mutable = base.copy()
    copied = request(image=mutable)
    mutable[:] = 0
    assert np.array_equal(np.asarray(kept.image), np.asarray(copied.image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_every_colour_mode_is_converted(mode: str) -> None:
    grey = Image.new("L", (16, 16), 255)
    if mode in ("I", "I;16"):
        image = Image.fromarray(np.full((16, 16), 65535, np.uint16)).convert(mode)
    elif mode == "F":
        image = Image.fromarray(np.ones((16, 16), np.float32))
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "P") else grey.convert(mode)
    from bridle.pictures import read_picture, to_array

    array = to_array(read_picture("image", image))
    assert array.shape == (16, 16, 3) and np.allclose(array, 1.0, atol=0.01)


def test_seed_and_guidance_limits_that_are_fine(engine: bridle.Engine) -> None:
    for fields in ({"seed": 2**64 - 1}, {"guidance_scale": 0}, {"guidance_scale": 1.0}, {"num_inference_steps": 1}):
        assert torch.isfinite(latents(engine, **{"num_inference_steps": 2, **fields})).all()
