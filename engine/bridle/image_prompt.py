"""What a person writes to prompt with pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from bridle import field_checks as check
from bridle.errors import RequestError
from bridle.pictures import read_mask, read_picture

MAX_PICTURES = 16


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """An IP-Adapter: pictures as a prompt, by a second cross-attention beside the text's (arXiv 2308.06721).

    model: file or folder of the adapter, a cached Hugging Face id, or the name of one that the model folder holds. image:
    a picture or a list of them. scale: 0 to 10, or by block as in diffusers' `set_ip_adapter_scale`: {"down": 0.5, "up":
    {"block_0": [0, 1, 0]}}, blocks that are not named get 0. mask: where it acts, or one mask per picture; pictures without
    masks share one softmax, with masks each has its own. start, end: fractions of the steps. subfolder, weight_name: where
    in the folder, as in diffusers' `load_ip_adapter`. image_encoder: its folder, None = found beside the adapter. Raises
    RequestError.
    """

    model: str | Path
    image: object
    _: KW_ONLY
    scale: float | Mapping[str, object] = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: object | None = None
    subfolder: str = ""
    weight_name: str | None = None
    image_encoder: str | Path | None = None

    def __post_init__(self) -> None:
        check.model_path("ImagePrompt.model", self.model)
        pictures = self.image if isinstance(self.image, (list, tuple)) else [self.image]
        if not check.items("ImagePrompt.image", pictures, MAX_PICTURES):
            raise RequestError("ImagePrompt.image", "no pictures", f"1 to {MAX_PICTURES}")
        _put(self, "image", tuple(read_picture(f"ImagePrompt.image[{i}]", p) for i, p in enumerate(pictures)))
        if isinstance(self.scale, Mapping):
            _put(self, "scale", _block_scales("ImagePrompt.scale", self.scale))
        else:
            _put(self, "scale", check.number("ImagePrompt.scale", self.scale, 0.0, 10.0))
        start, end = check.span("ImagePrompt", self.start, self.end)
        _put(self, "start", start)
        _put(self, "end", end)
        if self.mask is not None:
            _put(self, "mask", _masks(self.mask, len(pictures)))
        check.text("ImagePrompt.subfolder", self.subfolder, 256)
        if self.weight_name is not None:
            check.text("ImagePrompt.weight_name", self.weight_name, 256)
        if self.image_encoder is not None:
            check.model_path("ImagePrompt.image_encoder", self.image_encoder)


def _put(item: object, field: str, value: object) -> None:
    object.__setattr__(item, field, value)


def _masks(value: object, pictures: int) -> tuple[object, ...]:
    masks: Sequence[object] = value if isinstance(value, (list, tuple)) else [value] * pictures
    if len(masks) != pictures:
        raise RequestError("ImagePrompt.mask", f"{len(masks)} masks", f"one, or one per picture: {pictures}")
    found = tuple(read_mask(f"ImagePrompt.mask[{i}]", mask) for i, mask in enumerate(masks))
    for i, mask in enumerate(found):
        if not mask.any():
            raise RequestError(f"ImagePrompt.mask[{i}]", "a mask of zeros", "a mask that is not empty")
    return found


def _block_scales(field: str, value: Mapping[str, object]) -> dict[str, object]:
    """Numbers, lists of numbers and dictionaries of them, as deep as diffusers' own."""
    scales: dict[str, object] = {}
    for name, scale in value.items():
        place = f"{field}[{name!r}]"
        if isinstance(scale, Mapping):
            scales[check.text(field, name, 64)] = _block_scales(place, scale)
        elif isinstance(scale, (list, tuple)):
            scales[check.text(field, name, 64)] = tuple(
                check.number(f"{place}[{i}]", s, 0.0, 10.0) for i, s in enumerate(scale)
            )
        else:
            scales[check.text(field, name, 64)] = check.number(place, scale, 0.0, 10.0)
    return scales
