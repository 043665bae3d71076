"""Regions, views and map controls as the command line writes them: WHERE=WHAT, then options after semicolons."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bridle
from bridle.errors import RequestError
from bridle.map_controls import MapControl

REGION_HELP = (
    "BOX=PROMPT or MASK.png=PROMPT, BOX as left,top,right,bottom from 0 to 1; then ;weight=1;negative_prompt=TEXT"
)
VIEWS_HELP = "WINDOW or WINDOW,STRIDE in pixels, and ,circular: panoramas in overlapping windows."
REWEIGHT_HELP = "WORD=FACTOR; then ;start=0;end=1"
INJECT_HELP = "WORD=BOX or WORD=MAP.png; then ;strength=1;mode=bias;start=0;end=1"
EDIT_HELP = "Edit the image of this prompt; then ;mode=replace;cross=0.8;self=0.4;blend=WORD;source_blend=WORD"
IMAGE_PROMPT_HELP = "NAME=IMAGE, NAME an IP-Adapter; then ;scale=1;start=0;end=1;mask=FILE;weight_name=FILE"

_Parse = Callable[[str, str], object]


def parse_region(text: str) -> bridle.Region:
    """BOX=PROMPT or MASK=PROMPT. Raises RequestError."""
    head, options = _options(
        "region", text, {**dict.fromkeys(("weight", "guidance_scale"), _number), "negative_prompt": _text}
    )
    where, prompt = _pair("region", head, "BOX=PROMPT or MASK.png=PROMPT")
    place = {"box": box} if (box := _box(where)) else {"mask": where}
    return bridle.Region(prompt, **place, **options)


def parse_views(text: str) -> bridle.Views:
    """WINDOW[,STRIDE][,circular]. Raises RequestError."""
    parts = text.split(",")
    circular = parts[-1] == "circular"
    sizes = parts[:-1] if circular else parts
    if len(sizes) > 2 or not all(size.isdecimal() and len(size) < 10 for size in sizes):
        raise RequestError("views", text, "WINDOW, WINDOW,STRIDE or either with ,circular")
    window, stride = ([int(size) for size in sizes] + [None, None])[:2]
    return bridle.Views(window, stride, circular)


def parse_attention(
    heatmap: Sequence[str], reweight: Sequence[str], inject_map: Sequence[str], edit_of: str | None
) -> list[MapControl]:
    """The entries of `Request.attention`. Raises RequestError."""
    found: list[MapControl] = [bridle.CaptureMaps(list(heatmap))] if heatmap else []
    found.extend(_reweight(text) for text in reweight)
    found.extend(_inject_map(text) for text in inject_map)
    return found if edit_of is None else [*found, _edit(edit_of)]


def parse_image_prompt(text: str) -> bridle.ImagePrompt:
    """NAME=IMAGE. Raises RequestError."""
    kinds: dict[str, _Parse] = {**dict.fromkeys(("scale", "start", "end"), _number)}
    kinds |= dict.fromkeys(("mask", "weight_name", "subfolder", "image_encoder"), _text)
    head, options = _options("image_prompt", text, kinds)
    name, picture = _pair("image_prompt", head, "NAME=IMAGE")
    return bridle.ImagePrompt(name, picture, **options)


def _reweight(text: str) -> bridle.Reweight:
    head, options = _options("reweight", text, dict.fromkeys(("start", "end"), _number))
    word, factor = _pair("reweight", head, "WORD=FACTOR")
    return bridle.Reweight(word, _number("reweight", factor), **options)


def _inject_map(text: str) -> bridle.InjectMap:
    kinds: dict[str, _Parse] = {**dict.fromkeys(("strength", "start", "end"), _number), "mode": _text}
    head, options = _options("inject_map", text, kinds)
    word, where = _pair("inject_map", head, "WORD=BOX or WORD=MAP.png")
    place = {"box": box} if (box := _box(where)) else {"map": where}
    return bridle.InjectMap(word, **place, **options)


def _edit(text: str) -> bridle.PromptEdit:
    kinds: dict[str, _Parse] = {**dict.fromkeys(("cross", "self"), _number)}
    kinds |= dict.fromkeys(("mode", "blend", "source_blend"), _text)
    source, options = _options("edit_of", text, kinds)
    words, theirs = options.pop("blend", None), options.pop("source_blend", None)
    if words is None and theirs is not None:
        raise RequestError("edit_of", text, "blend=WORD with source_blend=WORD")
    blend = None if words is None else bridle.LocalBlend(words, theirs)
    return bridle.PromptEdit(source, local_blend=blend, **options)


def _options(field: str, text: str, kinds: Mapping[str, _Parse]) -> tuple[str, dict[str, Any]]:
    """What stands before the first semicolon, and the options after it."""
    head, *options = text.split(";")
    found: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in kinds:
            raise RequestError(field, option, " or ".join(f"{known}=" for known in kinds))
        found[name] = kinds[name](f"{field} {name}", value)
    return head, found


def _pair(field: str, text: str, wants: str) -> tuple[str, str]:
    left, _, right = text.partition("=")
    if not left or not right:
        raise RequestError(field, text, wants)
    return left, right


def _box(text: str) -> tuple[float, ...] | None:
    """Four numbers, or None for anything else, which is then a file."""
    try:
        sides = tuple(float(side) for side in text.split(","))
    except ValueError:
        return None
    return sides if len(sides) == 4 else None


def _text(field: str, value: str) -> str:
    return value


def _number(field: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as problem:
        raise RequestError(field, value, "a number") from problem
