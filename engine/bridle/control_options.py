"""A control as the command line writes it: NAME=IMAGE, then options."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import bridle
from bridle.engine import resolve_control
from bridle.errors import RequestError
from bridle.request import Control
from bridle.weights import locate
from bridle.weights.control_kind import control_kind

CONTROL_HELP = (
    "NAME=IMAGE, NAME a folder, file or cached id, or a control of the model; "
    "then options: scale=0.8,start=0,end=1,mask=FILE"
)


def parse_control(text: str, model: Path) -> Control:
    """A control from NAME=IMAGE[,option=value...]; its weights say which kind it is.

    model: the folder whose own controls NAME may mean. Raises RequestError and ModelLoadError.
    """
    head, *options = text.split(",")
    name, _, picture = head.partition("=")
    if not name or not picture:
        raise RequestError("control", text, "NAME=IMAGE[,scale=0.8,start=0,end=1,mask=FILE]")
    adapter = control_kind(locate(resolve_control(model, name))) == "T2IAdapter"
    kind: type[Control] = bridle.T2IAdapter if adapter else bridle.ControlNet
    values: dict[str, Any] = dict(_option(option) for option in options)
    for field in values:
        if field not in {item.name for item in fields(kind)}:
            raise RequestError("control", text, f"no {field}=, which a {kind.__name__} does not have")
    return kind(name, picture, **values)


def _option(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    if name == "mask":
        return name, Path(value)
    if name in ("scale", "start", "end"):
        return name, _number(name, value)
    if name == "guess_mode" and value in ("true", "false"):
        return name, value == "true"
    if name in ("resize", "guess_scales"):
        return name, value
    if name == "layer_weights":
        return name, tuple(_number(name, weight) for weight in value.split("/"))
    wants = "scale=, start=, end=, mask=, resize=, guess_mode=, guess_scales= or layer_weights=a/b/..."
    raise RequestError("control", text, wants)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as problem:
        raise RequestError(f"control {name}", text, "a number") from problem
