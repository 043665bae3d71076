"""What a person writes to capture, edit and inject cross-attention maps: entries of `Request.attention`."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from bridle import field_checks as check
from bridle.errors import RequestError
from bridle.masks import read_box
from bridle.pictures import read_mask

Fraction = float | tuple[float, float]
"""The end of a span of the steps that begins at 0, or its start and end."""


@dataclass(frozen=True, slots=True)
class CaptureMaps:
    """Heat maps of words, summed over layers, heads and steps (DAAM, arXiv 2210.04885): `result.maps`.

    words: of the prompt, or phrases; a word that occurs several times has one map. resolution: longer side, in cells, of the
    maps that take part, None = all. steps: indices, None = all. layers: "down", "mid", "up" or diffusers paths such as
    "up_blocks.1", None = down and up, as the authors' program does. Raises RequestError.
    """

    words: str | Sequence[str]
    _: KW_ONLY
    resolution: int | None = None
    steps: Sequence[int] | None = None
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _put(self, "words", check.words("CaptureMaps.words", self.words))
        if self.resolution is not None:
            _put(self, "resolution", check.integer("CaptureMaps.resolution", self.resolution, 1, 4096))
        if self.steps is not None:
            steps = enumerate(check.items("CaptureMaps.steps", self.steps, 1000))
            _put(self, "steps", tuple(check.integer(f"CaptureMaps.steps[{i}]", step, 0, 999) for i, step in steps))
            if not self.steps:
                raise RequestError("CaptureMaps.steps", self.steps, "None or at least one step")
        _put(self, "layers", _layers("CaptureMaps.layers", self.layers))


@dataclass(frozen=True, slots=True)
class Reweight:
    """The attention of words is multiplied by a factor after the softmax (prompt-to-prompt, arXiv 2208.01626).

    factor: -10 to 10, 1 changes nothing. start, end: fractions of the steps. Raises RequestError.
    """

    words: str | Sequence[str]
    factor: float
    _: KW_ONLY
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _put(self, "words", check.words("Reweight.words", self.words))
        _put(self, "factor", check.number("Reweight.factor", self.factor, -10.0, 10.0))
        start, end = check.span("Reweight", self.start, self.end)
        _put(self, "start", start)
        _put(self, "end", end)


@dataclass(frozen=True, slots=True)
class InjectMap:
    """A map of one's own steers where words draw.

    map: array or image, 1 = here. box: (left, top, right, bottom) as fractions, instead of a map. mode "bias": the words'
    attention is multiplied before normalisation by (m / mean m) ** strength, with m the map lifted off zero (see
    `controls.inject_map`). mode "mass": the share `strength` of each word's attention is laid out as the map says
    (arXiv 2304.03373, forward guidance). strength: 0 to 10, or 0 to 1 for "mass"; 0 changes nothing. layers: named as
    in `CaptureMaps`, None = all. Raises RequestError.
    """

    words: str | Sequence[str]
    map: object | None = None
    _: KW_ONLY
    strength: float = 1.0
    mode: str = "bias"
    start: float = 0.0
    end: float = 1.0
    layers: Sequence[str] | None = None
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        _put(self, "words", check.words("InjectMap.words", self.words))
        check.choice("InjectMap.mode", self.mode, ("bias", "mass"))
        most = 1.0 if self.mode == "mass" else 10.0
        _put(self, "strength", check.number("InjectMap.strength", self.strength, 0.0, most))
        start, end = check.span("InjectMap", self.start, self.end)
        _put(self, "start", start)
        _put(self, "end", end)
        _put(self, "layers", _layers("InjectMap.layers", self.layers))
        if (self.map is None) == (self.box is None):
            raise RequestError("InjectMap.map", "none" if self.map is None else "a map and a box", "a map or a box")
        if self.box is not None:
            _put(self, "box", read_box("InjectMap.box", self.box))
        else:
            _put(self, "map", read_mask("InjectMap.map", self.map))
            if not self.map.any():  # type: ignore[attr-defined]
                raise RequestError("InjectMap.map", "a map of zeros", "a map that is not empty")


@dataclass(frozen=True, slots=True)
class LocalBlend:
    """Keeps the source image outside the area of some words (prompt-to-prompt, `LocalBlend`).

    words: of the prompt. source_words: of the source prompt, None = the same ones. threshold: of the map divided by its
    maximum, 0 to 1. start: fraction of the steps after which it begins. Raises RequestError.
    """

    words: str | Sequence[str]
    source_words: str | Sequence[str] | None = None
    _: KW_ONLY
    threshold: float = 0.3
    start: float = 0.0

    def __post_init__(self) -> None:
        _put(self, "words", check.words("LocalBlend.words", self.words))
        source = self.words if self.source_words is None else self.source_words
        _put(self, "source_words", check.words("LocalBlend.source_words", source))
        _put(self, "threshold", check.number("LocalBlend.threshold", self.threshold, 0.0, 1.0))
        _put(self, "start", check.number("LocalBlend.start", self.start, 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class PromptEdit:
    """The image is an edit of the one that `source_prompt` gives with the same seed (arXiv 2208.01626).

    mode "replace": prompts of as many words, some exchanged; "refine": words added or removed. cross: the span of the steps in
    which cross-attention maps are the source's, its end or (start, end); or by word, with "default_" for all others.
    self: the same for self-attention maps. local_blend: words, or a `LocalBlend`. `result.source_images` holds the
    source. Raises RequestError.
    """

    source_prompt: str
    _: KW_ONLY
    cross: Fraction | Mapping[str, Fraction] = 0.8
    self: Fraction = 0.4
    mode: str = "replace"
    local_blend: "LocalBlend | str | Sequence[str] | None" = None

    def __post_init__(edit) -> None:
        check.text("PromptEdit.source_prompt", edit.source_prompt, 32768)
        check.choice("PromptEdit.mode", edit.mode, ("replace", "refine"))
        if isinstance(edit.cross, Mapping):
            spans = {
                check.text("PromptEdit.cross", word, 256): _fraction(f"PromptEdit.cross[{word!r}]", span)
                for word, span in edit.cross.items()
            }
            _put(edit, "cross", spans)
        else:
            _put(edit, "cross", _fraction("PromptEdit.cross", edit.cross))
        _put(edit, "self", _fraction("PromptEdit.self", edit.self))
        if edit.local_blend is not None and not isinstance(edit.local_blend, LocalBlend):
            _put(edit, "local_blend", LocalBlend(edit.local_blend))


MapControl = CaptureMaps | Reweight | InjectMap | PromptEdit


def _put(item: object, field: str, value: object) -> None:
    object.__setattr__(item, field, value)


def _layers(field: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = check.items(field, [value] if isinstance(value, str) else value, 32)
    if not names:
        raise RequestError(field, value, "None or at least one layer")
    return tuple(check.text(f"{field}[{i}]", name, 256) for i, name in enumerate(names))


def _fraction(field: str, value: object) -> tuple[float, float]:
    """(start, end), start <= end."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise RequestError(field, value, "a number or (start, end), 0 to 1")
        start, end = (check.number(f"{field}[{i}]", side, 0.0, 1.0) for i, side in enumerate(value))
    else:
        start, end = 0.0, check.number(field, value, 0.0, 1.0)
    if start > end:
        raise RequestError(field, value, "start <= end")
    return start, end
