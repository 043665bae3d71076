"""A request as JSON and back, pictures included, so that an image can be made again from its metadata."""

import base64
import io
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bridle.errors import RequestError
from bridle.png_metadata import parameters_text
from bridle.request import Control, ControlNet, Request, T2IAdapter
from bridle.schedulers import a1111_names, resolve_scheduler

if TYPE_CHECKING:
    from bridle.request_lowering import Prepared
    from bridle.weights import Model

FORMAT = 1
_CONTROLS: Mapping[str, type[ControlNet] | type[T2IAdapter]] = {"ControlNet": ControlNet, "T2IAdapter": T2IAdapter}
_PICTURES = ("image", "mask_image", "depth_image", "mask", "latents")


def request_to_json(request: Request, seed: int, model: str) -> dict[str, object]:
    """JSON that makes exactly the image of `seed`: the request with num_images 1. model: as given to `load`."""
    body = {item.name: _encode(getattr(request, item.name)) for item in fields(request)}
    body.update(seed=seed, num_images=1, controls=[_control_to_json(control) for control in request.controls])
    if isinstance(request.latents, torch.Tensor):
        place = request.seeds.index(seed)
        body["latents"] = _encode(request.latents[place : place + 1])
    return {"format": FORMAT, "model": model, "request": body}


def request_from_json(document: Mapping[str, Any]) -> tuple[Request, str]:
    """The request and its model from `request_to_json`. Raises RequestError for anything else."""
    if document.get("format") != FORMAT or not isinstance(document.get("request"), Mapping):
        raise RequestError("replay", str(document.get("format")), f"metadata of format {FORMAT}")
    body = dict(document["request"])
    controls = body.pop("controls", [])
    values = _decoded(body, Request)
    return Request(controls=tuple(_control_from_json(item) for item in controls), **values), str(document["model"])


def a1111_parameters(prepared: "Prepared", seed: int, model: "Model") -> str:
    """The `parameters` text that A1111 and the viewers of its images read."""
    request = prepared.request
    sampler, schedule_type = a1111_names(resolve_scheduler(request.scheduler, model.scheduler))
    return parameters_text(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or "",
        steps=request.num_inference_steps,
        sampler=sampler,
        schedule_type=schedule_type,
        guidance_scale=prepared.guidance_scale,
        seed=seed,
        width=prepared.size[1],
        height=prepared.size[0],
        model=model.name,
    )


def _control_to_json(control: Control) -> dict[str, object]:
    body = {item.name: _encode(getattr(control, item.name)) for item in fields(control)}
    return {"type": type(control).__name__, **body}


def _control_from_json(body: Mapping[str, Any]) -> Control:
    kind = _CONTROLS.get(str(body.get("type")))
    if kind is None:
        raise RequestError("controls", str(body.get("type")), "ControlNet or T2IAdapter")
    return kind(**_decoded({name: value for name, value in body.items() if name != "type"}, kind))


def _decoded(body: Mapping[str, Any], kind: type) -> dict[str, Any]:
    known = {item.name for item in fields(kind)}
    for name in body:
        if name not in known:
            raise RequestError(str(name), "an unknown field", f"a field of {kind.__name__}")
    return {name: _decode(name, value) for name, value in body.items()}


def _encode(value: object) -> object:
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return {"png": base64.b64encode(buffer.getvalue()).decode("ascii")}
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        raw = base64.b64encode(np.ascontiguousarray(value, dtype="<f4").tobytes()).decode("ascii")
        return {"float32": raw, "shape": list(value.shape)}
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def _decode(name: str, value: Any) -> Any:
    if name not in _PICTURES or value is None:
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, Mapping) and "png" in value:
        return Image.open(io.BytesIO(base64.b64decode(value["png"])))
    if isinstance(value, Mapping) and "float32" in value:
        array = np.frombuffer(base64.b64decode(value["float32"]), dtype="<f4")
        return array.reshape([int(side) for side in value["shape"]]).astype(np.float32)
    raise RequestError(name, "an unknown encoding", "a png or float32 entry")
