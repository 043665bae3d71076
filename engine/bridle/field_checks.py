"""Checks of single request fields. Each returns the value in its plain Python type or raises RequestError by name."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from bridle.errors import LimitError, RequestError


def integer(field: str, value: object, low: int, high: int) -> int:
    """An integer from `low` to `high`; above `high` is a LimitError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < low:
        raise RequestError(field, value, f"an integer from {low} to {high}")
    if value > high:
        raise LimitError(field, int(value), f"an integer from {low} to {high}")
    return int(value)


def number(field: str, value: object, low: float, high: float) -> float:
    """A finite number from `low` to `high`."""
    wants = f"a number from {low:g} to {high:g}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise RequestError(field, value, wants)
    if not math.isfinite(value if isinstance(value, (float, np.floating)) else 0) or not low <= value <= high:
        raise RequestError(field, value.item() if isinstance(value, np.generic) else value, wants)
    return float(value)


def text(field: str, value: object, longest: int) -> str:
    """A string of at most `longest` characters without lone surrogates."""
    if not isinstance(value, str):
        raise RequestError(field, value, "a string")
    if len(value) > longest:
        raise LimitError(field, f"{len(value)} characters", f"at most {longest} characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RequestError(field, value, "text without lone surrogates")
    return value


def boolean(field: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise RequestError(field, value, "True or False")
    return bool(value)


def choice(field: str, value: object, allowed: Collection[str]) -> str:
    """One of the `allowed` names."""
    if not isinstance(value, str) or value not in allowed:
        raise RequestError(field, value, "one of " + ", ".join(repr(name) for name in allowed))
    return value


def size_pair(field: str, value: object, low: int, high: int) -> tuple[int, int]:
    """Two integers from `low` to `high`."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise RequestError(field, value, "a pair of integers (height, width)")
    return integer(f"{field}[0]", value[0], low, high), integer(f"{field}[1]", value[1], low, high)


def items(field: str, value: object, longest: int) -> Sequence[object]:
    """A list or tuple of at most `longest` entries."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise RequestError(field, value, "a list")
    if len(value) > longest:
        raise LimitError(field, f"{len(value)} entries", f"at most {longest}")
    return value


def words(field: str, value: object) -> tuple[str, ...]:
    """One word or a list of 1 to 32 distinct ones."""
    found = tuple(
        text(f"{field}[{i}]", word, 256)
        for i, word in enumerate([value] if isinstance(value, str) else items(field, value, 32))
    )
    if not found or any(not word.strip() for word in found):
        raise RequestError(field, value, "a word of the prompt or a list of them")
    if len(set(found)) != len(found):
        raise RequestError(field, value, "each word once")
    return found


def span(field: str, start: object, end: object) -> tuple[float, float]:
    """Fractions of the steps, start < end. field: the name of the type that holds `start` and `end`."""
    first, last = number(f"{field}.start", start, 0.0, 1.0), number(f"{field}.end", end, 0.0, 1.0)
    if first >= last:
        raise RequestError(f"{field}.start", first, f"less than end = {last}")
    return first, last


def model_path(field: str, value: object) -> None:
    """A folder, a file, a cached id or the name of a control in the model folder."""
    if not isinstance(value, (str, Path)) or not str(value):
        raise RequestError(field, value, "a folder, file or name")
    if len(str(value)) > 4096 or "\0" in str(value):
        raise RequestError(field, "a path that no file can have", "a folder, file or name")
