"""Bad requests (reliability catalogue D to H): one typed error that names the field, before any network runs."""

import io
import math
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from runs import half_mask, latents, picture, request, with_input_channels
from watched_ops import RefusingOps

import bridle
from bridle.errors import LimitError, RequestError

NAN = math.nan
GREY = np.full((128, 128, 3), 128, np.uint8)


@pytest.fixture
def idle_engine(folder: Path) -> bridle.Engine:
    """An engine in which any network call fails the test."""
    engine = bridle.load(folder, backend="reference")
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
    ("negative_prompt", "(a:nan)"),
    ("negative_prompt", "BREAK " * 70),
    ("prompt", "cat " * 8000),
    ("prompt_2", "only SDXL"),
    ("negative_prompt_2", "only SDXL"),
    ("negative_original_size", (1, 2)),
    ("negative_crops_coords_top_left", (0, 0)),
    ("negative_target_size", (1, 2)),
    ("crops_coords_top_left", (0, 8)),
    ("prompt_syntax", "comfy"),
    ("num_images", 0),
    ("num_images", 10**9),
    ("num_images", 1.0),
    ("num_images", True),
    ("num_images", None),
    ("num_images", Decimal(1)),
    ("noise", "curand"),
    ("noise", None),
    ("seed", None),
    ("seed", "7"),
    ("seed", [0.5]),
    ("seed", 1 << 20_000),
    ("strength", None),
    ("strength", True),
    ("eta", 1.5),
    ("clip_skip", None),
    ("prompt_syntax", None),
    ("output_type", None),
    ("vae_tiling", None),
    ("crops_coords_top_left", None),
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
    ("image", torch.zeros(3, 16, 16, device="meta")),
    ("image", torch.zeros(3, 16, 16, dtype=torch.uint8)),
    ("image", torch.zeros(3, 0, 0)),
    ("image", torch.full((3, 16, 16), NAN)),
    ("image", np.zeros((16, 16, 3), np.int8)),
    ("image", np.zeros((16, 16, 3), bool)),
    ("image", np.zeros((16, 16), [("a", "f4")])),
    ("image", np.zeros((2, 40_000), np.uint8)),
    ("image", np.zeros((16, 40_000), np.uint8)),
    ("image", b"bytes"),
    ("image", "http://169.254.169.254/latest"),
    ("image", "/dev/zero"),
    ("image", "."),
    ("image", "a\0b"),
    ("image", "x" * 10_000),
    ("latents", torch.zeros(1, 4, 16, 15)),
    ("latents", torch.zeros(2, 4, 16, 16)),
    ("latents", torch.full((1, 4, 16, 16), NAN)),
    ("latents", "noise"),
    ("latents", torch.zeros(1, 4, 16, 16, dtype=torch.int32)),
    ("latents", torch.zeros(1, 4, 16, 16).to_sparse()),
    ("latents", torch.zeros(1, 4, 16, 16, device="meta")),
    ("latents", np.zeros((1, 4, 16, 16), np.complex64)),
    ("latents", np.zeros((1, 9, 16, 16), np.float32)),
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
    shown = isinstance(case, (str, float, tuple, list, type(None))) or (isinstance(case, int) and case < 2**64)
    return ascii(case)[:40] if shown else type(case).__name__


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
    ("mask", np.full((16, 16), 2, np.int64)),
    ("mask", np.full((16, 16), -1, np.int64)),
    ("mask", np.ones((1, 1), bool)),
    ("mask", np.ones((0, 16), bool)),
    ("mask", np.ones(16, bool)),
    ("mask", torch.ones(16, 16, device="meta")),
    ("mask", "none.png"),
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


def test_strength_beyond_its_range() -> None:
    for strength in (1.0000001, -0.1, NAN, math.inf, "1"):
        with pytest.raises(RequestError, match="strength"):
            request(image=picture(), strength=strength)
    with pytest.raises(RequestError, match="strength"):
        request(strength=0.0)


def test_limits_of_several_fields_together(idle_engine: bridle.Engine) -> None:
    """Each is fine alone; so is a schedule of 20 steps, or an image of which less than one step is repainted."""
    large = request(num_images=64, num_inference_steps=1000, width=4096, height=4096, guidance_scale=1.0)
    with pytest.raises(LimitError, match="images x steps x pixels"):
        idle_engine.sample(large)
    with pytest.raises(RequestError, match="eta"):
        idle_engine.sample(request(scheduler="euler", eta=0.5))
    with pytest.raises(RequestError, match=r"strength: got 0\.04"):
        idle_engine.sample(request(image=picture(), strength=0.04))


def test_models_that_need_a_picture(folder: Path, tmp_path: Path) -> None:
    for channels, missing in ((9, "mask_image"), (5, "depth_image")):
        own = with_input_channels(folder, tmp_path / str(channels), channels)
        engine = bridle.load(own, backend="reference")
        engine.backend.ops = RefusingOps()
        with pytest.raises(RequestError) as caught:
            engine.sample(request(image=picture()))
        assert caught.value.field == missing
    with pytest.raises(RequestError, match="mask_image"):
        engine.sample(request(image=picture(), mask_image=half_mask(), depth_image=GREY))


def test_an_adapter_says_which_sizes_it_takes(xl_folder: Path) -> None:
    engine = bridle.load(xl_folder, backend="reference")
    engine.backend.ops = RefusingOps()
    with pytest.raises(RequestError, match="width: got 72, wants a multiple of 16"):
        engine.sample(request(width=72, controls=[adapter()]))


def test_callback_must_be_callable(idle_engine: bridle.Engine) -> None:
    with pytest.raises(RequestError, match="callback"):
        idle_engine.sample(request(), callback=3)


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


def test_files_that_are_no_picture(tmp_path: Path) -> None:
    """Formats that Pillow would hand to another program or that are text, a pipe without a writer, a zlib bomb."""
    bomb = PngInfo()
    bomb.add_text("a", "0" * 2**27, zip=True)
    picture().save(tmp_path / "text-bomb.png", pnginfo=bomb)
    picture().save(tmp_path / "page.eps")
    (tmp_path / "vector.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "page.pdf").write_bytes(b"%PDF-1.4")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("text-bomb.png", "page.eps", "vector.svg", "page.pdf", "pipe.png"):
        with pytest.raises(RequestError, match="readable image file"):
            request(image=tmp_path / name)


def test_flipped_bits_never_crash(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    read = 0
    for suffix in ("png", "jpeg", "webp", "gif", "tiff", "bmp", "ppm"):
        whole = io.BytesIO()
        picture(width=40, height=24).save(whole, suffix)
        for _ in range(40):
            data = np.frombuffer(whole.getvalue(), np.uint8).copy()
            data[random.integers(0, min(len(data), 400), 3)] ^= 1 << random.integers(0, 8, 3).astype(np.uint8)
            (tmp_path / "flipped").write_bytes(data.tobytes())
            try:
                request(image=tmp_path / "flipped")
                read += 1
            except RequestError:
                continue
    assert 20 < read < 260


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = picture(width=32, height=16)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = upright if turn is None else upright.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    read = request(image=tmp_path / "photo.png").image
    assert np.array_equal(np.asarray(read), np.asarray(upright))


def test_masks_of_every_kind_are_the_same_mask() -> None:
    right = half_mask(32)
    as_image = Image.fromarray(right.astype(np.uint8) * 255)
    forms = [
        right,
        right.astype(np.uint8),
        right.astype(np.int64),
        right.astype(np.float16),
        as_image,
        torch.tensor(right),
    ]
    forms += [right.astype(np.uint8) * 255, torch.tensor(right).float(), as_image.convert("RGB"), as_image.convert("1")]
    for form in forms:
        assert np.array_equal(controlnet(mask=form).mask, right.astype(np.float32)), type(form)
    assert controlnet(mask=np.zeros((16, 16), np.uint8)).mask.max() == 0
    assert np.allclose(controlnet(mask=np.full((16, 16), 51, np.uint8)).mask, 0.2)


def test_arrays_of_every_layout_are_the_same_latents(engine: bridle.Engine) -> None:
    base = np.random.default_rng(6).standard_normal((1, 4, 16, 16)).astype(np.float32)
    padded = np.zeros((1, 4, 16, 32), np.float32)
    padded[..., ::2] = base
    with_gradient = torch.tensor(base, requires_grad=True)
    forms = [base, padded[..., ::2], base[:, ::-1][:, ::-1], base.astype(">f4"), base.astype(np.float64), with_gradient]
    results = [latents(engine, latents=form, num_inference_steps=1) for form in forms]
    assert all(torch.equal(results[0], other) for other in results)
    mutable = base.copy()
    kept = request(latents=mutable)
    mutable[:] = 0
    assert torch.equal(kept.latents, torch.from_numpy(base))


def test_numpy_numbers_are_numbers(engine: bridle.Engine) -> None:
    ours = request(
        seed=np.uint64(3), num_inference_steps=np.int64(2), guidance_scale=np.float32(2.5), width=np.int32(128)
    )
    assert type(ours.seed) is type(ours.num_inference_steps) is int and type(ours.guidance_scale) is float
    assert torch.equal(engine.sample(ours).latents, latents(engine, seed=3, num_inference_steps=2, guidance_scale=2.5))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"]
)
def test_every_colour_mode_is_converted(mode: str) -> None:
    grey, lab = (
        Image.new("L", (16, 16), 255),
        Image.merge("LAB", [Image.new("L", (16, 16), v) for v in (255, 128, 128)]),
    )
    if mode in ("I", "I;16"):
        image = Image.fromarray(np.full((16, 16), 65535, np.uint16)).convert(mode)
    elif mode == "F":
        image = Image.fromarray(np.ones((16, 16), np.float32))
    else:
        image = lab if mode == "LAB" else grey.convert(mode if mode in ("1", "LA") else "RGB").convert(mode)
    from bridle.pictures import read_picture, to_array

    array = to_array(read_picture("image", image))
    assert array.shape == (16, 16, 3) and np.allclose(array, 1.0, atol=0.01)


def test_seed_and_guidance_limits_that_are_fine(engine: bridle.Engine) -> None:
    for fields in ({"seed": 2**64 - 1}, {"guidance_scale": 0}, {"guidance_scale": 1.0}, {"num_inference_steps": 1}):
        assert torch.isfinite(latents(engine, **{"num_inference_steps": 2, **fields})).all()
