"""A request as JSON and back, pictures included, so that an image can be made again from its metadata."""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from bridle.errors import RequestError
from bridle.image_prompt import ImagePrompt
from bridle.map_controls import CaptureMaps, InjectMap, LocalBlend, PromptEdit, Reweight
from bridle.png_metadata import parameters_text
from bridle.region import Region, Views
from bridle.request import ControlNet, Request, T2IAdapter
from bridle.schedulers import a1111_names, resolve_scheduler

if TYPE_CHECKING:
    from bridle.request_checks import Prepared
    from bridle.weights import Model

FORMAT = 1
_VALUES: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        ControlNet,
        T2IAdapter,
        ImagePrompt,
        Region,
        Views,
        CaptureMaps,
        Reweight,
        InjectMap,
        PromptEdit,
        LocalBlend,
    )
}
_PICTURES = ("image", "mask_image", "depth_image", "mask", "map", "latents")
_NON_FINITE = ("inf", "-inf", "nan")


@dataclass(frozen=True, slots=True)
class Loading:
    """What an image's model was loaded with: arguments of `bridle.load`, None where they were left out.

    model: None is the model in the package. dtype: the name of the type that was used, never "auto".
    """

    model: str | None
    dtype: str | None = None
    variant: str | None = None
    tokenizer: str | None = None
    prediction_type: str | None = None


def request_to_json(request: Request, index: int, loading: Loading) -> dict[str, object]:
    """JSON that makes exactly image `index` of the request, as a request of one image."""
    body = {item.name: _encode(getattr(request, item.name)) for item in fields(request)}
    body.update(seed=request.seeds[index], num_images=1, output_type="pil")
    if isinstance(request.latents, torch.Tensor):
        body["latents"] = _encode(request.latents[index : index + 1])
    load = {item.name: getattr(loading, item.name) for item in fields(loading)}
    return {"format": FORMAT, "load": load, "request": body}


def request_from_json(document: Mapping[str, Any]) -> tuple[Request, Loading]:
    """The request and its model from `request_to_json`. Raises RequestError for anything else."""
    body, load = document.get("request"), document.get("load")
    if document.get("format") != FORMAT or not isinstance(body, Mapping) or not isinstance(load, Mapping):
        raise RequestError("replay", str(document.get("format")), f"metadata of format {FORMAT}")
    known = {item.name for item in fields(Loading)}
    if "model" not in load or not all(name in known and isinstance(v, str | None) for name, v in load.items()):
        raise RequestError("replay", "a damaged entry 'load'", ", ".join(sorted(known)))
    return Request(**_decoded(body, Request)), Loading(**load)


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
    if is_dataclass(value):
        body = {item.name: _encode(getattr(value, item.name)) for item in fields(value)}
        return {"type": type(value).__name__, **body}
    if isinstance(value, Mapping):
        return {str(name): _encode_setting(item) for name, item in value.items()}
    return [_encode(item) for item in value] if isinstance(value, tuple) else value


def _encode_setting(value: object) -> object:
    """A field of a scheduler configuration. JSON has no infinity, which diffusers writes into some of them."""
    plain = value.tolist() if isinstance(value, (np.ndarray, np.generic, torch.Tensor)) else value
    return {"float": str(plain)} if isinstance(plain, float) and not math.isfinite(plain) else _encode(plain)


def _decode(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(name, item) for item in value)
    if name in _PICTURES and value is not None:
        return _decode_picture(name, value)
    if not isinstance(value, Mapping):
        return value
    kind = _VALUES.get(value["type"]) if isinstance(value.get("type"), str) else None
    if kind is not None:
        return kind(**_decoded({field: item for field, item in value.items() if field != "type"}, kind))
    return {field: _decode_setting(item) for field, item in value.items()}


def _decode_picture(name: str, value: Any) -> Any:
    """Never a path: metadata must not make this computer read its files."""
    try:
        if isinstance(value, Mapping) and "png" in value:
            return Image.open(io.BytesIO(base64.b64decode(value["png"], validate=True)), formats=("PNG",))
        if isinstance(value, Mapping) and "float32" in value:
            array = np.frombuffer(base64.b64decode(value["float32"], validate=True), dtype="<f4")
            return array.reshape([int(side) for side in value["shape"]]).astype(np.float32)
    except (KeyError, OSError, SyntaxError, TypeError, ValueError) as problem:
        raise RequestError(name, "a damaged entry", "a png or float32 entry") from problem
    raise RequestError(name, "an unknown encoding", "a png or float32 entry")


def _decode_setting(value: Any) -> Any:
    """An entry of a dictionary: of a scheduler's configuration, or of scales and spans by name."""
    if isinstance(value, Mapping) and value.get("float") in _NON_FINITE:
        return float(value["float"])
    if isinstance(value, Mapping):
        return {name: _decode_setting(item) for name, item in value.items()}
    return tuple(_decode_setting(item) for item in value) if isinstance(value, list) else value
