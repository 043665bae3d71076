"""What a person writes to divide the canvas: prompts for parts of it, and views of a panorama."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from bridle import field_checks as check
from bridle.errors import RequestError
from bridle.masks import read_box, read_polygon
from bridle.pictures import read_mask


@dataclass(frozen=True, slots=True)
class Region:
    """A prompt for a part of the image: exactly one of box, polygon and mask.

    box: (left, top, right, bottom), polygon: corners (x, y), both as fractions of the image. mask: array or image, 1 = here,
    soft values are kept in `region_mode="attention"` and cut at 0.5 in "latent". weight: share against other regions where
    they overlap, above 0 to 10. negative_prompt: of this region, None = the request's. guidance_scale: of this region, in
    "latent" mode; None = the request's. Raises RequestError.
    """

    prompt: str
    box: tuple[float, float, float, float] | None = None
    _: KW_ONLY
    mask: object | None = None
    polygon: Sequence[tuple[float, float]] | None = None
    weight: float = 1.0
    negative_prompt: str | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        check.text("Region.prompt", self.prompt, 32768)
        if self.negative_prompt is not None:
            check.text("Region.negative_prompt", self.negative_prompt, 32768)
        given = [name for name in ("box", "mask", "polygon") if getattr(self, name) is not None]
        if len(given) != 1:
            raise RequestError("Region.box", " and ".join(given) or None, "one of box, mask and polygon")
        if self.box is not None:
            _put(self, "box", read_box("Region.box", self.box))
        if self.polygon is not None:
            _put(self, "polygon", read_polygon("Region.polygon", self.polygon))
        if self.mask is not None:
            _put(self, "mask", read_mask("Region.mask", self.mask))
            if not self.mask.any():  # type: ignore[attr-defined]
                raise RequestError("Region.mask", "a mask of zeros", "a mask that is not empty")
        _put(self, "weight", check.number("Region.weight", self.weight, 0.0, 10.0))
        if self.weight == 0.0:
            raise RequestError("Region.weight", 0.0, "more than 0; leave the region out to switch it off")
        if self.guidance_scale is not None:
            _put(self, "guidance_scale", check.number("Region.guidance_scale", self.guidance_scale, 0.0, 100.0))


@dataclass(frozen=True, slots=True)
class Views:
    """The canvas is denoised in overlapping windows whose predictions are averaged (MultiDiffusion, arXiv 2302.08113).

    window: side of the square windows in pixels, None = the size the model was trained for. stride: between windows, in
    pixels, None = an eighth of the window. circular: windows wrap around the right edge, for seamless panoramas. A last window
    that does not fit is moved back to the edge. Raises RequestError.
    """

    window: int | None = None
    stride: int | None = None
    circular: bool = False

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            if getattr(self, name) is not None:
                _put(self, name, check.integer(f"Views.{name}", getattr(self, name), 8, 8192))
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise RequestError("Views.stride", self.stride, f"at most window = {self.window}")
        _put(self, "circular", check.boolean("Views.circular", self.circular))


def _put(item: object, field: str, value: object) -> None:
    object.__setattr__(item, field, value)
