"""The weighting syntax of A1111: `(more)`, `[less]`, `(text:1.2)`, `\\(` for a bracket itself, and BREAK."""

import math
import re
from dataclasses import dataclass

from bridle.errors import LimitError, RequestError

MAX_DEPTH = 32
MAX_WEIGHT = 100.0
_BRACKET = 1.1
_PIECES = re.compile(
    r"(?P<escape>\\[()\[\]\\])"
    r"|:\s*(?P<weight>[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf(?:inity)?))\s*\)"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|[\\:])",
    re.IGNORECASE,
)
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True, slots=True)
class Segment:
    """Text of one weight."""

    text: str
    weight: float


Groups = tuple[tuple[Segment, ...], ...]
"""Segments between BREAKs; neighbours have different weights. At least one group, possibly empty."""


def parse_prompt(prompt: str, field: str = "prompt") -> Groups:
    """The weighted text of a prompt, in time linear in its length.

    A bracket pair multiplies the weight of what it encloses by 1.1 or, square, by 1 / 1.1; `(text:w)` by w. A bracket
    that is never closed counts to the end; one that was never opened is text. Raises RequestError for a weight that is
    negative, not finite or above 100, LimitError beyond 32 open brackets; `field` is the name they carry.
    """
    parser = _Parser(field)
    for piece in _PIECES.finditer(prompt):
        parser.take(piece)
    return parser.finish()


class _Parser:
    def __init__(self, field: str) -> None:
        self._field = field
        self._texts: list[str | None] = []  # None marks a BREAK
        self._weights: list[float] = []
        self._open: dict[str, list[int]] = {"(": [], "[": []}

    def take(self, piece: re.Match[str]) -> None:
        if piece["escape"]:
            self._append(piece["escape"][1:])
        elif piece["weight"] and self._open["("]:
            self._close("(", self._weight(piece["weight"]))
        elif piece["weight"]:
            self._append(piece[0])
        elif piece["bracket"]:
            self._take_bracket(piece["bracket"])
        else:
            self._append_text(piece["text"])

    def finish(self) -> Groups:
        for start in self._open["("]:
            self._multiply(start, _BRACKET)
        for start in self._open["["]:
            self._multiply(start, 1.0 / _BRACKET)
        groups: list[list[Segment]] = [[]]
        run: list[str] = []
        for i, text in enumerate(self._texts):
            if text is None:
                groups.append([])
                continue
            run.append(text)
            if i + 1 == len(self._texts) or self._texts[i + 1] is None or self._weights[i + 1] != self._weights[i]:
                groups[-1].append(Segment("".join(run), self._checked(self._weights[i])))
                run = []
        return tuple(tuple(group) for group in groups)

    def _take_bracket(self, bracket: str) -> None:
        if bracket in self._open:
            if len(self._open["("]) + len(self._open["["]) >= MAX_DEPTH:
                raise LimitError(self._field, "brackets inside brackets", f"at most {MAX_DEPTH} open at a time")
            self._open[bracket].append(len(self._texts))
        elif bracket == ")" and self._open["("]:
            self._close("(", _BRACKET)
        elif bracket == "]" and self._open["["]:
            self._close("[", 1.0 / _BRACKET)
        else:
            self._append(bracket)

    def _append_text(self, text: str) -> None:
        parts = _BREAK.split(text)
        for i, part in enumerate(parts):
            if i > 0:
                self._texts.append(None)
                self._weights.append(1.0)
            part = part.lstrip() if i > 0 else part
            part = part.rstrip() if i + 1 < len(parts) else part
            if part:
                self._append(part)

    def _append(self, text: str) -> None:
        self._texts.append(text)
        self._weights.append(1.0)

    def _close(self, bracket: str, factor: float) -> None:
        self._multiply(self._open[bracket].pop(), factor)

    def _multiply(self, start: int, factor: float) -> None:
        for i in range(start, len(self._weights)):
            self._weights[i] *= factor

    def _weight(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not 0.0 <= value <= MAX_WEIGHT:
            raise RequestError(self._field, f"weight {text[:32]}", f"weights from 0 to {MAX_WEIGHT:g}")
        return value

    def _checked(self, weight: float) -> float:
        if weight > MAX_WEIGHT:
            raise RequestError(self._field, f"a total weight of {weight:.4g}", f"weights from 0 to {MAX_WEIGHT:g}")
        return weight
