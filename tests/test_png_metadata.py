"""Text chunks of PNG files."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bridle.errors import LimitError, RequestError
from bridle.png_metadata import MAX_TEXT, parameters_text, read_parameters, read_png, write_png

REQUEST = {
    "prompt": "a \u201cred\u201d 猫\x00\ud800",
    "seed": 2**64 - 1,
    "scale": 0.1,
    "controls": [{"image": "A" * 5000}],
}


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> io.BytesIO:
    plain = io.BytesIO()
    picture().save(plain, "PNG")
    data = plain.getvalue()
    return io.BytesIO(data[:33] + b"".join(chunks) + data[33:])


@pytest.mark.parametrize("parameters", ["plain, Steps: 20", "Straße", "猫 \u201cred\u201d", "nul \x00 \ud800", "a\nb"])
def test_round_trip(tmp_path: Path, parameters: str) -> None:
    image = picture()
    write_png(image, tmp_path / "a b.png", REQUEST, parameters)
    assert read_png(tmp_path / "a b.png") == REQUEST
    assert read_png(str(tmp_path / "a b.png")) == REQUEST
    found = read_parameters(tmp_path / "a b.png")
    assert found == parameters.replace("\x00", "\ufffd").replace("\ud800", "?")
    with Image.open(tmp_path / "a b.png") as stored:
        stored.load()
        assert stored.info["parameters"] == found
        np.testing.assert_array_equal(np.asarray(stored), np.asarray(image))


def test_file_objects_and_no_metadata() -> None:
    buffer = io.BytesIO()
    write_png(picture(), buffer, {"a": 1}, "x")
    buffer.seek(0)
    assert read_png(buffer) == {"a": 1}
    assert read_png(png_with()) is None
    assert read_parameters(png_with()) is None


def test_only_text_beyond_latin_1_is_itxt() -> None:
    for text, kind in (("Straße", b"tEXt"), ("猫", b"iTXt")):
        buffer = io.BytesIO()
        write_png(picture(), buffer, {}, text)
        assert kind + b"parameters" in buffer.getvalue()


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
def test_compressed_text_of_other_writers(kind: str) -> None:
    packed = zlib.compress(b'{"a": 2}')
    body = {"zTXt": b"bridle\0\0" + packed, "iTXt": b"bridle\0\x01\0\0\0" + packed}[kind]
    assert read_png(png_with(chunk(kind.encode(), body))) == {"a": 2}


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
def test_bombs(kind: str) -> None:
    packed = zlib.compress(b"0" * (MAX_TEXT + 10))
    body = {"zTXt": b"bridle\0\0" + packed, "iTXt": b"bridle\0\x01\0\0\0" + packed}[kind]
    with pytest.raises(LimitError):
        read_png(png_with(chunk(kind.encode(), body)))


def test_declared_sizes_are_not_believed() -> None:
    with pytest.raises(LimitError):
        read_png(png_with(struct.pack(">I", 2**31 - 1) + b"tEXt" + b"bridle\0"))
    with pytest.raises(RequestError):
        read_png(png_with(struct.pack(">I", 2**20) + b"tEXt" + b"bridle\0"))


def test_too_many_chunks() -> None:
    with pytest.raises(LimitError):
        read_png(png_with(chunk(b"tEXt", b"a\0b") * 100_001))


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"tEXt", b"bridle\0{"),
        chunk(b"tEXt", b"bridle\0[1]"),
        chunk(b"tEXt", b"bridle\0" + b"[" * 200_000),
        chunk(b"tEXt", b"bridle\0{}")[:-1] + b"x",
        chunk(b"zTXt", b"bridle\0\0not zlib"),
        chunk(b"iTXt", b"bridle\0\0"),
        chunk(b"iTXt", b"bridle\0\0\0\0\0\xff\xfe"),
    ],
    ids=[str(i) for i in range(7)],
)
def test_damaged_text(broken: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_png(png_with(broken))
    assert caught.value.field == "png"


def test_files_that_are_no_png(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"hello")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("text.png", "pipe.png", "missing.png", "."):
        with pytest.raises(RequestError) as caught:
            read_png(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(RequestError):
        read_png("a\0b")


def test_truncation_never_crashes() -> None:
    buffer = io.BytesIO()
    write_png(picture(), buffer, {"a": 1}, "x")
    data = buffer.getvalue()
    for end in range(len(data)):
        try:
            read_png(io.BytesIO(data[:end]))
        except RequestError:
            continue


def test_too_much_json_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(LimitError):
        write_png(picture(), tmp_path / "a.png", {"a": "x" * MAX_TEXT}, "x")
    assert not (tmp_path / "a.png").exists()


def test_parameters_text() -> None:
    text = parameters_text(
        prompt="a (cat:1.2)\nsecond line",
        negative_prompt="dog",
        steps=20,
        sampler="DPM++ 2M",
        schedule_type="Karras",
        guidance_scale=7.0,
        seed=5,
        width=512,
        height=768,
        model="my, model",
        model_hash="0123456789",
        extra={"Denoising strength": 0.6, "Nothing": None},
    )
    first, second, negative, settings = text.split("\n")
    assert (first, second, negative) == ("a (cat:1.2)", "second line", "Negative prompt: dog")
    assert settings.startswith(
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x768, "
        'Model hash: 0123456789, Model: "my, model", Denoising strength: 0.6, Version: bridle'
    )
    assert "None" not in settings


def test_empty_settings_are_left_out() -> None:
    text = parameters_text(
        prompt="a", negative_prompt="", steps=1, sampler="Euler", guidance_scale=1.5, seed=0, width=8, height=8
    )
    assert text.startswith("a\nSteps: 1, Sampler: Euler, CFG scale: 1.5, Seed: 0, Size: 8x8, Version: bridle")
