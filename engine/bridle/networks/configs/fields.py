"""Reads the fields of one `config.json`: every value is checked, and every refusal names the file and the field."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeGuard

from bridle.errors import ModelLoadError

MAX_WIDTH = 65536
"""Largest channel, token or vocabulary-independent width that is accepted."""

MAX_LEVELS = 8
MAX_DEPTH = 256


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one configuration file. A field that is absent has the given default."""

    config: Mapping[str, object]
    file: str

    def refuse(self, field: str, wants: str) -> NoReturn:
        """Raises ModelLoadError for `field`: what it is and what it should be."""
        got = repr(self.config.get(field))
        raise ModelLoadError(self.file, f"field '{field}' is {got[:80]}, wants {wants}")

    def integer(self, field: str, default: int, minimum: int = 1, maximum: int = MAX_WIDTH) -> int:
        """An integer in [minimum, maximum]."""
        value = self.config.get(field, default)
        if not _is_integer(value) or not minimum <= value <= maximum:
            self.refuse(field, f"an integer from {minimum} to {maximum}")
        return value

    def number(self, field: str, default: float) -> float:
        """A finite number in (0, 1e6]."""
        value = self.config.get(field, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1e6:
            self.refuse(field, "a number above 0 and at most 1e6")
        return float(value)

    def boolean(self, field: str, default: bool) -> bool:
        """True or false; null means the default."""
        value = self.config.get(field, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(field, "true or false")
        return value

    def choice(self, field: str, default: str | None, choices: Sequence[str | None]) -> str | None:
        """One of `choices`."""
        value = self.config.get(field, default)
        if (value is not None and not isinstance(value, str)) or value not in choices:
            self.refuse(field, "one of " + ", ".join("null" if c is None else c for c in choices))
        return value

    def integers(
        self, field: str, default: Sequence[int], maximum: int = MAX_WIDTH, longest: int = MAX_LEVELS, minimum: int = 1
    ) -> tuple[int, ...]:
        """A list of 1 to `longest` integers in [minimum, maximum]."""
        value = self.config.get(field, default)
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= longest:
            self.refuse(field, f"a list of 1 to {longest} integers")
        if not all(_is_integer(v) and minimum <= v <= maximum for v in value):
            self.refuse(field, f"integers from {minimum} to {maximum}")
        return tuple(value)

    def per_level(self, field: str, default: int, levels: int, maximum: int = MAX_WIDTH) -> tuple[int, ...]:
        """One integer per level, written as a list or as one integer for all of them."""
        if not isinstance(self.config.get(field, default), (list, tuple)):
            return (self.integer(field, default, maximum=maximum),) * levels
        values = self.integers(field, (), maximum)
        if len(values) != levels:
            self.refuse(field, f"{levels} integers, one per level")
        return values

    def names(self, field: str, default: Sequence[str], length: int, choices: Sequence[str]) -> tuple[str, ...]:
        """A list of `length` names out of `choices`."""
        value = self.config.get(field, default)
        if not isinstance(value, (list, tuple)) or len(value) != length:
            self.refuse(field, f"a list of {length} names, one per level")
        if not all(isinstance(v, str) and v in choices for v in value):
            self.refuse(field, "names out of " + ", ".join(choices))
        return tuple(value)

    def require(self, implemented: Mapping[str, tuple[object, ...]]) -> None:
        """Refuses by name every field whose value is not one of those implemented."""
        for field, values in implemented.items():
            if field in self.config and not any(_same(self.config[field], value) for value in values):
                self.refuse(field, " or ".join(repr(v) for v in values) + "; other values are not implemented")

    def divides(self, field: str, divisor: int, channels: Sequence[int]) -> None:
        """Refuses `field` unless it divides every channel count."""
        for count in channels:
            if count % divisor:
                self.refuse(field, f"a divisor of the {count} channels of every level it serves")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _same(got: object, wanted: object) -> bool:
    """Equality that keeps True apart from 1 and treats a non-finite number as equal to nothing."""
    if isinstance(got, float) and not math.isfinite(got):
        return False
    return got == wanted and isinstance(got, bool) == isinstance(wanted, bool)
