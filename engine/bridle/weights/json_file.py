"""Configuration files of model folders: strict JSON objects of bounded size."""

import json
from collections.abc import Mapping
from pathlib import Path

from bridle.errors import ModelLoadError

MAX_BYTES = 16 * 1024 * 1024
_MAX_DEPTH = 64


def read_json(path: Path, name: str) -> Mapping[str, object]:
    """The object in `path`. name: how messages call it. Raises ModelLoadError for anything else."""
    if not path.is_file():
        raise ModelLoadError(name, "is missing or not a regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ModelLoadError(name, f"is larger than {MAX_BYTES} bytes")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as problem:
        raise ModelLoadError(name, f"is not valid JSON ({type(problem).__name__})") from problem
    if not isinstance(value, dict) or _depth(value) > _MAX_DEPTH:
        raise ModelLoadError(name, f"is not a JSON object of at most {_MAX_DEPTH} levels")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth
