"""What a person writes: validated, immutable value types. Names and meanings follow diffusers where it has them."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bridle import field_checks as check
from bridle.errors import RequestError
from bridle.image_prompt import ImagePrompt
from bridle.map_controls import CaptureMaps, MapControl, PromptEdit
from bridle.noise import SOURCES
from bridle.pictures import Picture, read_mask, read_picture
from bridle.region import Region, Views

MAX_CONTROLS = 8
MAX_REGIONS = 32
MAX_IMAGES = 64
MAX_PROMPT = 32768
MAX_SIZE = 8192
MAX_SEED = 2**64 - 1
_RESIZE = ("stretch", "crop", "exact")


@dataclass(frozen=True, slots=True)
class ControlNet:
    """A ControlNet: a trained copy of the U-Net's encoder that reads a control image (arXiv 2302.05543).

    model: folder or file of its weights, a cached Hugging Face id, or the name of a control that the model folder holds
    ("canny" for DIR/controlnet-canny). image: the control image (see `pictures`). scale: 0 to 10, diffusers'
    `controlnet_conditioning_scale`. start, end: fractions of the steps it is active in. mask: where it acts,
    1 = fully; area-averaged to the latent size. guess_mode: control on the conditional row only, with rising scales;
    guess_scales: "diffusers" (logspace) or "official" (powers of 0.825). layer_weights: one more factor per residual
    (13 for SD 1.x and 2.x, 10 for SDXL). resize: "stretch", "crop" or "exact". Raises RequestError.
    """

    model: str | Path
    image: object
    _: KW_ONLY
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: object | None = None
    guess_mode: bool = False
    guess_scales: str = "diffusers"
    layer_weights: Sequence[float] | None = None
    resize: str = "stretch"

    def __post_init__(self) -> None:
        _check_control(self, "ControlNet")
        _put(self, "guess_mode", check.boolean("ControlNet.guess_mode", self.guess_mode))
        check.choice("ControlNet.guess_scales", self.guess_scales, ("diffusers", "official"))
        if self.layer_weights is not None:
            weights = enumerate(check.items("ControlNet.layer_weights", self.layer_weights, 64))
            factors = tuple(check.number(f"ControlNet.layer_weights[{i}]", w, -10.0, 10.0) for i, w in weights)
            _put(self, "layer_weights", factors)


@dataclass(frozen=True, slots=True)
class T2IAdapter:
    """A T2I-Adapter: features of a control image, computed once and added inside the encoder (arXiv 2302.08453).

    Fields as in `ControlNet`. scale is diffusers' `adapter_conditioning_scale`, end its `adapter_conditioning_factor`.
    Scales of several adapters add up; they are not divided by their number. Raises RequestError.
    """

    model: str | Path
    image: object
    _: KW_ONLY
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: object | None = None
    resize: str = "stretch"

    def __post_init__(self) -> None:
        _check_control(self, "T2IAdapter")


Control = ControlNet | T2IAdapter | ImagePrompt


@dataclass(frozen=True, slots=True)
class Request:
    """One request for one or several images. Unset sizes, scheduler and guidance come from the model.

    prompt, negative_prompt: A1111 weighting `(word:1.2)` and BREAK unless prompt_syntax is "plain"; any length.
    negative_prompt None differs from "" on SDXL (zeros instead of the encoded empty text), as in diffusers. prompt_2,
    negative_prompt_2: SDXL's second text encoder. seed: image i uses seed + i, or the i-th of a list. noise: "torch" (the
    numbers that diffusers draws) or "philox" (counted: each number depends on seed, step and place alone, and a GPU makes it
    where it is used; so are the backgrounds of latent regions chosen). width, height:
    pixels, multiples of the autoencoder's factor (8). num_inference_steps: 1 to 1000. guidance_scale: 0 to 100; at
    1 and below no unconditional row is run. scheduler: a diffusers class name, a label such as "dpm++ 2m karras" or a
    configuration dictionary. eta: 0 to 1, for DDIM and TCD. image, strength: image-to-image. mask_image: inpainting,
    1 or white = repaint. depth_image: for depth models. controls: any mix. regions: prompts
    for parts of the image. region_mode: "attention" (inside cross-attention; the prompt keeps the share base_ratio, 0 to 1,
    there and all of the rest) or "latent" (a denoised image per region, blended in every step; over the first
    bootstrapping_steps each region sees a flat background around it). views: windows, for panoramas. attention: heat
    maps, edits and injected maps. clip_skip: text encoder layers left out.
    original_size, crops_coords_top_left, target_size: SDXL size conditioning, (height, width) and (top, left), with
    negative_ forms for the unconditional row. latents: [num_images, 4, height / 8, width / 8] standard normal noise
    to start from instead of the seed's. vae_tiling: decode and encode in tiles. output_type: "pil", "np" or "latent".
    Raises RequestError, or LimitError for what is well formed but too large.
    """

    prompt: str = ""
    _: KW_ONLY
    negative_prompt: str | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    prompt_syntax: str = "a1111"
    num_images: int = 1
    seed: int | Sequence[int] = 0
    noise: str = "torch"
    width: int | None = None
    height: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float | None = None
    scheduler: str | Mapping[str, object] | None = None
    eta: float = 0.0
    image: object | None = None
    strength: float = 1.0
    mask_image: object | None = None
    depth_image: object | None = None
    controls: Sequence[Control] = ()
    regions: Sequence[Region] = ()
    region_mode: str = "attention"
    base_ratio: float = 0.2
    bootstrapping_steps: int = 20
    views: Views | None = None
    attention: Sequence[MapControl] = ()
    clip_skip: int = 0
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crops_coords_top_left: tuple[int, int] | None = None
    negative_target_size: tuple[int, int] | None = None
    latents: object | None = None
    vae_tiling: bool = False
    output_type: str = "pil"

    def __post_init__(self) -> None:
        _check_texts(self)
        _check_numbers(self)
        _check_sizes(self)
        _check_pictures(self)
        _put(self, "controls", _controls(self.controls))
        _check_regions(self)
        _put(self, "attention", _map_controls(self.attention))
        check.choice("output_type", self.output_type, ("pil", "np", "latent"))
        _put(self, "vae_tiling", check.boolean("vae_tiling", self.vae_tiling))

    @property
    def seeds(self) -> tuple[int, ...]:
        """One seed per image."""
        if isinstance(self.seed, int):
            return tuple((self.seed + i) % (MAX_SEED + 1) for i in range(self.num_images))
        return tuple(self.seed)


def _put(item: object, field: str, value: object) -> None:
    object.__setattr__(item, field, value)


def _check_control(control: ControlNet | T2IAdapter, name: str) -> None:
    check.model_path(f"{name}.model", control.model)
    _put(control, "image", read_picture(f"{name}.image", control.image))
    _put(control, "scale", check.number(f"{name}.scale", control.scale, 0.0, 10.0))
    start, end = check.span(name, control.start, control.end)
    _put(control, "start", start)
    _put(control, "end", end)
    if control.mask is not None:
        _put(control, "mask", read_mask(f"{name}.mask", control.mask))
    check.choice(f"{name}.resize", control.resize, _RESIZE)


def _controls(value: object) -> tuple[Control, ...]:
    items = check.items("controls", value, MAX_CONTROLS)
    for i, item in enumerate(items):
        if not isinstance(item, Control):
            raise RequestError(f"controls[{i}]", item, "a ControlNet, T2IAdapter or ImagePrompt")
    return tuple(item for item in items if isinstance(item, Control))


def _check_regions(request: Request) -> None:
    regions = check.items("regions", request.regions, MAX_REGIONS)
    for i, item in enumerate(regions):
        if not isinstance(item, Region):
            raise RequestError(f"regions[{i}]", item, "a Region")
    _put(request, "regions", tuple(regions))
    check.choice("region_mode", request.region_mode, ("attention", "latent"))
    _put(request, "base_ratio", check.number("base_ratio", request.base_ratio, 0.0, 1.0))
    steps = check.integer("bootstrapping_steps", request.bootstrapping_steps, 0, 1000)
    _put(request, "bootstrapping_steps", steps)
    if request.views is not None and not isinstance(request.views, Views):
        raise RequestError("views", request.views, "Views or None")
    for i, region in enumerate(request.regions):
        if region.guidance_scale is not None and request.region_mode == "attention":
            raise RequestError(
                f"regions[{i}].guidance_scale", region.guidance_scale, 'None unless region_mode="latent"'
            )


def _map_controls(value: object) -> tuple[MapControl, ...]:
    items = check.items("attention", value, MAX_CONTROLS)
    for i, item in enumerate(items):
        if not isinstance(item, MapControl):
            raise RequestError(f"attention[{i}]", item, "a CaptureMaps, Reweight, InjectMap or PromptEdit")
    found = tuple(item for item in items if isinstance(item, MapControl))
    if sum(isinstance(item, PromptEdit) for item in found) > 1:
        raise RequestError("attention", "two PromptEdits", "at most one PromptEdit")
    captured = [word for item in found if isinstance(item, CaptureMaps) for word in item.words]
    for word in captured:
        if captured.count(word) > 1:
            raise RequestError("attention", f"two CaptureMaps of {word!r}", "each word in one CaptureMaps")
    return found


def _check_texts(request: Request) -> None:
    check.text("prompt", request.prompt, MAX_PROMPT)
    for field in ("negative_prompt", "prompt_2", "negative_prompt_2"):
        if getattr(request, field) is not None:
            check.text(field, getattr(request, field), MAX_PROMPT)
    check.choice("prompt_syntax", request.prompt_syntax, ("a1111", "plain"))
    if request.scheduler is not None and not isinstance(request.scheduler, (str, Mapping)):
        raise RequestError("scheduler", request.scheduler, "a name or a configuration dictionary")
    if isinstance(request.scheduler, Mapping):
        _put(request, "scheduler", dict(request.scheduler))


def _check_numbers(request: Request) -> None:
    _put(request, "num_images", check.integer("num_images", request.num_images, 1, MAX_IMAGES))
    _put(request, "num_inference_steps", check.integer("num_inference_steps", request.num_inference_steps, 1, 1000))
    if request.guidance_scale is not None:
        _put(request, "guidance_scale", check.number("guidance_scale", request.guidance_scale, 0.0, 100.0))
    _put(request, "eta", check.number("eta", request.eta, 0.0, 1.0))
    _put(request, "strength", check.number("strength", request.strength, 0.0, 1.0))
    _put(request, "clip_skip", check.integer("clip_skip", request.clip_skip, 0, 31))
    _put(request, "seed", _seed(request.seed, request.num_images))
    check.choice("noise", request.noise, SOURCES)


def _seed(value: object, num_images: int) -> int | tuple[int, ...]:
    if not isinstance(value, Sequence):
        return check.integer("seed", value, 0, MAX_SEED)
    seeds = check.items("seed", value, MAX_IMAGES)
    if len(seeds) != num_images:
        raise RequestError("seed", f"{len(seeds)} seeds", f"one per image: {num_images}")
    return tuple(check.integer(f"seed[{i}]", seed, 0, MAX_SEED) for i, seed in enumerate(seeds))


def _check_sizes(request: Request) -> None:
    for field in ("width", "height"):
        if getattr(request, field) is not None:
            _put(request, field, check.integer(field, getattr(request, field), 8, MAX_SIZE))
    for field in ("original_size", "target_size", "negative_original_size", "negative_target_size"):
        if getattr(request, field) is not None:
            _put(request, field, check.size_pair(field, getattr(request, field), 1, 65536))
    for field in ("crops_coords_top_left", "negative_crops_coords_top_left"):
        if getattr(request, field) is not None:
            _put(request, field, check.size_pair(field, getattr(request, field), 0, 65536))


def _check_pictures(request: Request) -> None:
    for field in ("image", "depth_image"):
        if getattr(request, field) is not None:
            _put(request, field, read_picture(field, getattr(request, field)))
    if request.mask_image is not None:
        _put(request, "mask_image", read_mask("mask_image", request.mask_image))
        if request.image is None:
            raise RequestError("mask_image", "a mask", "None without image")
    if request.image is None and request.strength != 1.0:
        raise RequestError("strength", request.strength, "1.0 without image")
    if request.latents is not None:
        _put(request, "latents", _latents(request.latents, request.num_images))


def _latents(value: object, num_images: int) -> torch.Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(np.array(value, dtype=np.float32))
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise RequestError("latents", value, "a float tensor or array [num_images, 4, h, w]")
    if value.layout != torch.strided or value.is_meta:
        raise RequestError("latents", f"{value.layout} on {value.device}", "a dense tensor with values")
    if value.ndim != 4 or value.shape[0] != num_images:
        raise RequestError("latents", tuple(value.shape), f"[{num_images}, 4, h, w]")
    copy = value.detach().to(device="cpu", dtype=torch.float32, copy=True)
    if not torch.isfinite(copy).all():
        raise RequestError("latents", "NaN or infinity", "finite values")
    return copy


def as_picture(value: object) -> Picture:
    """The picture that `__post_init__` has put into a field."""
    assert not isinstance(value, (str, Path, torch.Tensor))
    return value  # type: ignore[return-value]


def as_mask(value: object) -> NDArray[np.float32]:
    """The mask that `__post_init__` has put into a field."""
    assert isinstance(value, np.ndarray)
    return value
