"""Everything that can refuse a request, before any network runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.controls import capture_maps, controlnet, image_prompt, inject_map, prompt_edit, regions, t2i_adapter, views
from bridle.errors import LimitError, RequestError
from bridle.image_conditioning import check_images
from bridle.image_prompt import ImagePrompt
from bridle.lowering import Window
from bridle.map_controls import CaptureMaps, InjectMap, LocalBlend, MapControl, PromptEdit, Reweight
from bridle.networks.configs import AdapterConfig, ControlNetConfig
from bridle.prompts import PromptTokens, with_chunks, word_columns
from bridle.request import Control, ControlNet, Request, T2IAdapter
from bridle.solvers import SolverTable, solver_table
from bridle.text_conditioning import check_prompts, prompt_tokens
from bridle.weights import Component, IPAdapter

MAX_COST = 64 * 1000 * 2048 * 2048
"""Images x steps x pixels of one request."""

MAX_ROWS = 4096
"""Evaluations of one step of one request: images x views x prompts x 2."""

_XL_FIELDS = (
    "prompt_2",
    "negative_prompt_2",
    "original_size",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
)

Weights = Component[ControlNetConfig] | Component[AdapterConfig] | IPAdapter
FindControl = Callable[[Control], Weights]
Columns = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with the model's defaults filled in, and its schedule.

    size: (height, width) in pixels. weights: of each control. tokens: of the prompt, source_tokens: of the prompt that it
    edits, in as many chunks. columns: of the words that `attention` names. windows: the part of the canvas of each view,
    (None,) for all of it.
    """

    request: Request
    table: SolverTable
    size: tuple[int, int]
    latent_size: tuple[int, int]
    guidance_scale: float
    weights: tuple[Weights, ...]
    tokens: PromptTokens
    source_tokens: PromptTokens | None
    columns: Columns
    windows: tuple[Window | None, ...]

    @property
    def edit(self) -> PromptEdit | None:
        """The request's prompt edit."""
        return prompt_edit_of(self.request)

    def columns_of(self, words: Iterable[str]) -> list[int]:
        """Distinct columns of several words, ascending."""
        return sorted({column for word in words for column in self.columns[word]})


def prompt_edit_of(request: Request) -> PromptEdit | None:
    """The entry of `attention` that edits a prompt."""
    return next((item for item in request.attention if isinstance(item, PromptEdit)), None)


def prepare(backend: ReferenceBackend, request: Request, find_control: FindControl) -> Prepared:
    """The request, checked. Raises RequestError and ModelLoadError."""
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
    latent_size = (size[0] // backend.model.vae.config.scale, size[1] // backend.model.vae.config.scale)
    windows = _windows(backend, request, size, latent_size)
    regions.check(backend, request.regions, request.region_mode, size)
    weights = tuple(find_control(control) for control in request.controls)
    for control, loaded in zip(request.controls, weights, strict=True):
        _check_control(backend, control, loaded, size, windows[0])
    tokens, source = _aligned_tokens(backend, request)
    _check_attention(backend, request, tokens, source, size, latent_size, len(table))
    columns = _columns(backend, request.attention, tokens)
    injected = [control for control in request.attention if isinstance(control, InjectMap)]
    inject_map.check_shares(backend.model.unet.config, injected, columns, max(1, len(table)))
    return Prepared(request, table, size, latent_size, guidance, weights, tokens, source, columns, windows)


def _windows(
    backend: ReferenceBackend, request: Request, size: tuple[int, int], latent_size: tuple[int, int]
) -> tuple[Window | None, ...]:
    latent = bool(request.regions) and request.region_mode == "latent"
    count = 1
    if request.views is not None:
        views.check(backend, request.views, size)
        count = views.count(backend, request.views, latent_size)
    prompts = 1 + (len(request.regions) if latent else 0)
    if request.num_images * count * prompts * 2 > MAX_ROWS:
        got = f"{request.num_images} images x {count} views x {prompts} prompts"
        raise LimitError("views" if request.views else "regions", got, f"at most {MAX_ROWS // 2} together")
    if request.views is not None:
        return views.windows(backend, request.views, latent_size)
    return (Window(0, 0, *latent_size),) if latent else (None,)


def _aligned_tokens(backend: ReferenceBackend, request: Request) -> tuple[PromptTokens, PromptTokens | None]:
    """Of the prompt and of the one that it edits, in the same number of chunks."""
    tokens, edit = prompt_tokens(backend, request, "prompt", request.prompt), prompt_edit_of(request)
    if edit is None:
        return tokens, None
    source = prompt_tokens(backend, request, "PromptEdit.source_prompt", edit.source_prompt)
    chunks, tokenizer = max(len(tokens.lengths), len(source.lengths)), backend.model.tokenizers[0]
    return with_chunks(tokenizer, tokens, chunks), with_chunks(tokenizer, source, chunks)


def _check_attention(
    backend: ReferenceBackend,
    request: Request,
    tokens: PromptTokens,
    source: PromptTokens | None,
    size: tuple[int, int],
    latent_size: tuple[int, int],
    steps: int,
) -> None:
    tokenizer = backend.model.tokenizers[0]
    for index, control in enumerate(request.attention):
        if isinstance(control, (CaptureMaps, PromptEdit)):
            _check_one_canvas(request, f"attention[{index}]", type(control).__name__)
        elif isinstance(control, (Reweight, InjectMap)):
            _check_own_area(backend, request, f"attention[{index}]", type(control).__name__, size)
        if isinstance(control, CaptureMaps):
            capture_maps.check(backend.model.unet.config, control, latent_size, steps)
        elif isinstance(control, InjectMap):
            inject_map.check(backend, control, size)
        elif isinstance(control, PromptEdit):
            assert source is not None
            prompt_edit.check(tokenizer, control, source, tokens)
            if isinstance(control.local_blend, LocalBlend):
                words = control.local_blend.source_words
                word_columns(tokenizer, source, list(words or ()), "LocalBlend.source_words")


def _check_one_canvas(request: Request, field: str, name: str) -> None:
    """Maps of one prompt over the whole image need an image that is one row of the network."""
    if request.views is not None:
        raise RequestError(field, f"{name} together with views", "views=None: every view has maps of its own")
    if request.regions and request.region_mode == "latent":
        wants = 'region_mode="attention": every latent region has maps of its own'
        raise RequestError(field, f'{name} together with region_mode="latent"', wants)


def _check_own_area(backend: ReferenceBackend, request: Request, field: str, name: str, size: tuple[int, int]) -> None:
    """Words of the request's own prompt need a part of the image that latent regions leave to it."""
    if request.regions and request.region_mode == "latent":
        masks = regions.latent_masks(backend, request.regions, size)
        if not bool(regions.latent_rest(masks).any()):
            raise RequestError(
                field, f"{name} under latent regions that cover the image", "a part for the prompt itself"
            )


def _columns(backend: ReferenceBackend, controls: Sequence[MapControl], tokens: PromptTokens) -> Columns:
    """Columns of every word that a control names."""
    found: dict[str, tuple[int, ...]] = {}
    for control in controls:
        named = control.local_blend if isinstance(control, PromptEdit) else control
        if named is None:
            continue
        assert not isinstance(named, (str, Sequence))
        field = f"{type(named).__name__}.words"
        found.update(word_columns(backend.model.tokenizers[0], tokens, list(named.words), field))
    return found


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


def _check_latents(backend: ReferenceBackend, request: Request, size: tuple[int, int]) -> None:
    if isinstance(request.latents, Tensor):
        scale = backend.model.vae.config.scale
        want = (request.num_images, 4, size[0] // scale, size[1] // scale)
        if tuple(request.latents.shape) != want:
            raise RequestError("latents", tuple(request.latents.shape), f"{list(want)}")


def _check_control(
    backend: ReferenceBackend, control: Control, weights: Weights, size: tuple[int, int], window: Window | None
) -> None:
    if isinstance(control, ControlNet):
        assert isinstance(weights, Component) and isinstance(weights.config, ControlNetConfig)
        controlnet.check(control, weights.config, size)
    elif isinstance(control, T2IAdapter):
        assert isinstance(weights, Component) and isinstance(weights.config, AdapterConfig)
        scale = backend.model.vae.config.scale
        seen = size if window is None else (window.height * scale, window.width * scale)
        t2i_adapter.check(control, weights.config, size, seen)
    else:
        assert isinstance(control, ImagePrompt)
        image_prompt.check(backend, control, size)
