"""A request -> tracks: text, images and controls encoded once, rows described by primitives."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.controls import controlnet, t2i_adapter
from bridle.errors import LimitError, RequestError
from bridle.image_conditioning import check_images, encode_images, start
from bridle.lowering import RowPlan, Track
from bridle.networks.configs import AdapterConfig, ControlNetConfig
from bridle.request import Control, ControlNet, Request, T2IAdapter
from bridle.solvers import SolverTable, solver_table
from bridle.text_conditioning import TextConditioning, check_prompts, encode_negative, encode_positive
from bridle.weights import Component

MAX_COST = 64 * 1000 * 2048 * 2048
"""Images x steps x pixels of one request."""

_XL_FIELDS = (
    "prompt_2",
    "negative_prompt_2",
    "original_size",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
)

FindControl = Callable[[Control], Component[ControlNetConfig] | Component[AdapterConfig]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with the model's defaults filled in, and its schedule. size: (height, width) in pixels."""

    request: Request
    table: SolverTable
    size: tuple[int, int]
    guidance_scale: float
    components: tuple[Component[ControlNetConfig] | Component[AdapterConfig], ...]


def prepare(backend: ReferenceBackend, request: Request, find_control: FindControl) -> Prepared:
    """Everything that can refuse a request, before any network runs. Raises RequestError and ModelLoadError."""
    size = _size(backend, request)
    check_images(backend, request)
    _check_family(backend, request)
    _check_latents(backend, request, size)
    _check_clip_skip(backend, request)
    check_prompts(backend, request)
    if request.num_images * request.num_inference_steps * size[0] * size[1] > MAX_COST:
        raise LimitError("num_images", request.num_images, f"images x steps x pixels of at most {MAX_COST}")
    table = solver_table(
        request.scheduler,
        request.num_inference_steps,
        strength=request.strength,
        base=backend.model.scheduler,
        eta=request.eta,
    )
    default = 5.0 if backend.model.architecture == "sdxl" else 7.5
    guidance = default if request.guidance_scale is None else request.guidance_scale
    components = tuple(find_control(control) for control in request.controls)
    for control, component in zip(request.controls, components, strict=True):
        _check_control(control, component, size)
    return Prepared(request, table, size, guidance, components)


def lower_text(backend: ReferenceBackend, prepared: Prepared) -> list[RowPlan]:
    """The rows of one image, [unconditional, conditional] or [conditional], without images and controls."""
    positive = encode_positive(backend, prepared.request)
    rows = [_row(backend, prepared, positive, conditional=True)]
    if prepared.guidance_scale > 1.0:
        negative = encode_negative(backend, prepared.request, positive)
        rows.insert(0, _row(backend, prepared, negative, conditional=False))
    return rows


def lower_controls(backend: ReferenceBackend, prepared: Prepared, rows: list[RowPlan]) -> None:
    """Adds every control to the rows, in the order of the request."""
    timesteps = _timesteps(prepared.table)
    if not len(timesteps):
        return
    for control, component in zip(prepared.request.controls, prepared.components, strict=True):
        if isinstance(control, ControlNet):
            assert isinstance(component.config, ControlNetConfig)
            controlnet.lower(backend, control, component, rows, timesteps, prepared.size)
        else:
            assert isinstance(component.config, AdapterConfig)
            t2i_adapter.lower(backend, control, component, rows, len(timesteps), prepared.size)


def lower_images(backend: ReferenceBackend, prepared: Prepared, rows: list[RowPlan], index: int) -> list[Track]:
    """One track per image of the request."""
    request, table = prepared.request, prepared.table
    images = encode_images(backend, request, prepared.size)
    scale = backend.model.vae.config.scale
    latent_size = (prepared.size[0] // scale, prepared.size[1] // scale)
    guidance = (1.0 - prepared.guidance_scale, prepared.guidance_scale) if len(rows) == 2 else (1.0,)
    tracks = []
    for place, seed in enumerate(request.seeds):
        generator = torch.Generator().manual_seed(seed)
        injected = request.latents[place : place + 1] if isinstance(request.latents, Tensor) else None
        begin = start(backend, request, images, table, injected, latent_size, generator)
        own = tuple(replace(row, extra_channels=begin.extra_channels) for row in rows)
        tracks.append(Track(index, place, own, guidance, table, begin.latents[0], generator, begin.known))
    return tracks


def _row(backend: ReferenceBackend, prepared: Prepared, text: TextConditioning, conditional: bool) -> RowPlan:
    unet = backend.model.unet
    context = text.context.to(backend.device, backend.dtype)
    pooled = time_ids = added = None
    if text.pooled is not None:
        pooled = text.pooled.to(backend.device, backend.dtype)
        time_ids = _time_ids(prepared, conditional).to(backend.device)
        added = backend.added_embedding(unet, pooled, time_ids)
    time = backend.time_table(unet, _timesteps(prepared.table), added) if len(prepared.table) else context.new_zeros(0)
    return RowPlan(conditional, context, pooled, time_ids, backend.cross_kv(unet, context), time)


def _timesteps(table: SolverTable) -> Tensor:
    return torch.tensor(table.timesteps, dtype=torch.float32)


def _time_ids(prepared: Prepared, conditional: bool) -> Tensor:
    """[1, 6]: original size, crop corner, target size, each (height, width) or (top, left)."""
    request = prepared.request
    original, crop = request.original_size or prepared.size, request.crops_coords_top_left
    target = request.target_size or prepared.size
    if not conditional:
        original = request.negative_original_size or original
        crop = request.negative_crops_coords_top_left or crop
        target = request.negative_target_size or target
    return torch.tensor([[*original, *crop, *target]], dtype=torch.float32)


def _size(backend: ReferenceBackend, request: Request) -> tuple[int, int]:
    """(height, width): the request's, else the model's. Multiples of the autoencoder's factor that the U-Net halves."""
    scale = backend.model.vae.config.scale
    trained = backend.model.unet.config.sample_size
    height = request.height or trained[0] * scale
    width = request.width or trained[1] * scale
    for field, value in (("height", height), ("width", width)):
        if value % scale:
            raise RequestError(field, value, f"a multiple of {scale}")
    return height, width


def _check_family(backend: ReferenceBackend, request: Request) -> None:
    if backend.model.architecture == "sdxl":
        return
    unset = {**dict.fromkeys(_XL_FIELDS), "crops_coords_top_left": (0, 0)}
    for field, value in unset.items():
        if getattr(request, field) != value:
            raise RequestError(field, getattr(request, field), f"{value}: only SDXL models have it")


def _check_clip_skip(backend: ReferenceBackend, request: Request) -> None:
    used = 1 if backend.model.architecture == "sdxl" else 0
    most = min(encoder.config.layers for encoder in backend.model.text_encoders) - 1 - used
    if request.clip_skip > most:
        raise RequestError("clip_skip", request.clip_skip, f"at most {most} for this model")


def _check_control(
    control: Control, component: Component[ControlNetConfig] | Component[AdapterConfig], size: tuple[int, int]
) -> None:
    if isinstance(component.config, ControlNetConfig):
        assert isinstance(control, ControlNet)
        controlnet.check(control, component.config, size)
    else:
        assert isinstance(control, T2IAdapter)
        t2i_adapter.check(control, component.config, size)


def _check_latents(backend: ReferenceBackend, request: Request, size: tuple[int, int]) -> None:
    if isinstance(request.latents, Tensor):
        scale = backend.model.vae.config.scale
        want = (request.num_images, 4, size[0] // scale, size[1] // scale)
        if tuple(request.latents.shape) != want:
            raise RequestError("latents", tuple(request.latents.shape), f"{list(want)}")
