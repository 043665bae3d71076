"""Text in PNG files: the `parameters` that A1111 writes, and one JSON chunk `bridle` that replays the request."""

import importlib.metadata
import json
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bridle.errors import LimitError, RequestError

KEYWORD = "bridle"
MAX_TEXT = 32 * 2**20
"""Largest text chunk that is written or read, in bytes, after decompression."""
_MAX_CHUNKS = 100_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT_TYPES = (b"tEXt", b"zTXt", b"iTXt")


def write_png(
    image: Image.Image, target: str | Path | IO[bytes], request_json: Mapping[str, object], parameters: str
) -> None:
    """Saves `image` as PNG with both text chunks.

    request_json: what `read_png` gives back, JSON values only. parameters: as `parameters_text` builds it; stored as
    iTXt when Latin-1 cannot hold it. Raises LimitError if the JSON is larger than 32 MiB.
    """
    info = PngInfo()
    readable = parameters.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    if readable.isascii() or _is_latin1(readable):
        info.add_text("parameters", readable)
    else:
        info.add_itxt("parameters", readable)
    text = json.dumps(request_json, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    if len(text) > MAX_TEXT:
        raise LimitError("metadata", f"{len(text)} bytes", f"at most {MAX_TEXT} bytes")
    info.add_text(KEYWORD, text)
    image.save(target, "PNG", pnginfo=info)


def read_png(source: str | Path | IO[bytes]) -> dict[str, Any] | None:
    """The JSON that `write_png` stored, or None if the file has none.

    Raises RequestError for what is not an intact PNG or not JSON, LimitError for text larger than 32 MiB; compressed
    text is never expanded beyond that.
    """
    text = _read_text(source, KEYWORD)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("png", "text that is not JSON", f"JSON in the chunk '{KEYWORD}'") from None
    if not isinstance(found, dict):
        raise RequestError("png", type(found).__name__, f"a JSON object in the chunk '{KEYWORD}'")
    return found


def read_parameters(source: str | Path | IO[bytes]) -> str | None:
    """The `parameters` text, or None. Errors as `read_png`."""
    return _read_text(source, "parameters")


def parameters_text(
    *,
    prompt: str,
    negative_prompt: str,
    steps: int,
    sampler: str,
    guidance_scale: float,
    seed: int,
    width: int,
    height: int,
    schedule_type: str = "",
    model: str = "",
    model_hash: str = "",
    extra: Mapping[str, object] | None = None,
) -> str:
    """What A1111 writes about an image: prompt, negative prompt, one line of settings. Empty settings are left out.

    sampler, schedule_type: as `schedulers.a1111_names` gives them. extra: further settings, after the model.
    """
    settings: dict[str, object] = {
        "Steps": steps,
        "Sampler": sampler,
        "Schedule type": schedule_type,
        "CFG scale": f"{guidance_scale:g}",
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model hash": model_hash,
        "Model": model,
        **(extra or {}),
        "Version": _version(),
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items() if value not in ("", None))
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{line}"


def _version() -> str:
    try:
        return f"bridle {importlib.metadata.version('bridle')}"
    except importlib.metadata.PackageNotFoundError:
        return "bridle"


def _quoted(value: object) -> str:
    """Values that would end early where the line is parsed stand in quotes, as JSON strings."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def _is_latin1(text: str) -> bool:
    return all(character <= "\xff" for character in text)


def _read_text(source: str | Path | IO[bytes], keyword: str) -> str | None:
    if not isinstance(source, (str, Path)):
        return _find(source, keyword)
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise RequestError("png", Path(source).name, "a regular file")
        with open(source, "rb") as file:
            return _find(file, keyword)
    except (OSError, ValueError) as problem:
        if isinstance(problem, RequestError):
            raise
        raise RequestError("png", Path(source).name, "a file that can be read") from None


def _find(file: IO[bytes], keyword: str) -> str | None:
    for kind, body in _text_chunks(file):
        name, _, rest = body.partition(b"\0")
        if name == keyword.encode("latin-1"):
            return _decoded(kind, rest)
    return None


def _text_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(type, body) of every text chunk; the others are skipped unread."""
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise RequestError("png", "a file of another kind", "a PNG file")
    for _ in range(_MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8 or header[4:] == b"IEND":
            return
        length, kind = struct.unpack(">I4s", header)
        if kind not in _TEXT_TYPES:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        if length > MAX_TEXT + 1024:
            raise LimitError("png", f"a text chunk of {length} bytes", f"at most {MAX_TEXT} bytes")
        body, checksum = file.read(length), file.read(4)
        if len(body) < length or checksum != struct.pack(">I", zlib.crc32(kind + body)):
            raise RequestError("png", "a damaged text chunk", "an intact PNG file")
        yield kind, body
    raise LimitError("png", "more chunks", f"at most {_MAX_CHUNKS} chunks")


def _decoded(kind: bytes, rest: bytes) -> str:
    """The text of a chunk, after its keyword and the separator (PNG specification, 11.3.4)."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _expanded(rest[1:]).decode("latin-1")
    compressed, fields = rest[:1] == b"\x01", rest[2:].split(b"\0", 2)
    if len(fields) != 3:
        raise RequestError("png", "a damaged text chunk", "an intact PNG file")
    body = _expanded(fields[2]) if compressed else fields[2]
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise RequestError("png", "text that is not UTF-8", "an intact PNG file") from None


def _expanded(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, MAX_TEXT)
    except zlib.error:
        raise RequestError("png", "a damaged text chunk", "an intact PNG file") from None
    if stream.unconsumed_tail:
        raise LimitError("png", "compressed text", f"at most {MAX_TEXT} bytes when expanded")
    return text
