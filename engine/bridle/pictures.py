"""Pictures and masks as users give them -> arrays.

Accepted: `PIL.Image.Image`, a path, a NumPy array [H, W], [H, W, 3] or [H, W, 4] (uint8 0..255 or float 0..1), or a
torch tensor [3, H, W] or [1, 3, H, W] (float 0..1). Every picture is copied on entry. Colour modes: palette, RGBA, LA,
CMYK and the like are converted to RGB by Pillow (transparency over white); EXIF orientation is applied; 16-bit
integer modes are scaled by 65535. Files: the formats of `FORMATS`, of which the first frame is read.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bridle.errors import LimitError, RequestError

MAX_SIDE = 16384
MAX_PIXELS = 64 * 1024 * 1024
MIN_SIDE = 8
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Formats that are decoded in the process: none that Pillow hands to another program."""
_WANTS = "a PIL image, a path, an array [H, W, 3] or [H, W] (uint8, or float in [0, 1]) or a tensor [3, H, W]"

Picture = Image.Image | NDArray[np.float32]
"""An 8-bit PIL image of mode RGB, or a read-only float32 array [H, W, 3] in [0, 1]."""


def read_picture(field: str, value: object) -> Picture:
    """Copies and checks one picture. Raises RequestError, or LimitError for more than 64 megapixels."""
    if isinstance(value, (str, Path)):
        value = _open(field, value)
    if isinstance(value, Image.Image):
        return _from_pil(field, value)
    if isinstance(value, torch.Tensor):
        value = _tensor_to_array(field, value)
    if isinstance(value, np.ndarray):
        return _from_array(field, value)
    raise RequestError(field, value, _WANTS)


def read_mask(field: str, value: object) -> NDArray[np.float32]:
    """A mask [H, W] in [0, 1].

    Arrays [H, W] of bool, and of integers that are all 0 or 1, are taken as they are, other uint8 values divided by
    255, colours by their luma. Raises RequestError and LimitError.
    """
    if isinstance(value, torch.Tensor) and value.ndim == 2:
        _check_dense(field, value)
        value = (value.float() if value.is_floating_point() else value).detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.ndim == 2 and _is_binary(value):
        value = value.astype(np.float32)
    picture = read_picture(field, value)
    if isinstance(picture, Image.Image):
        mask = np.asarray(picture.convert("L"), dtype=np.float32) / 255.0
    else:
        mask = picture.mean(axis=2, dtype=np.float32)
    mask.setflags(write=False)
    return mask


def _is_binary(array: NDArray[Any]) -> bool:
    return array.dtype == np.bool_ or (
        array.dtype.kind in "iu" and array.size > 0 and bool(np.isin(array, (0, 1)).all())
    )


def picture_size(picture: Picture) -> tuple[int, int]:
    """(height, width)."""
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    return picture.shape[0], picture.shape[1]


def to_array(picture: Picture) -> NDArray[np.float32]:
    """[H, W, 3] float32 in [0, 1]."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture, dtype=np.float32) / 255.0
    return picture


def fit(picture: Picture, height: int, width: int, resize: str) -> NDArray[np.float32]:
    """The picture at `height` x `width`, [H, W, 3] float32 in [0, 1].

    resize: "stretch" (Lanczos to the size, as diffusers) or "crop" (scaled to cover, centre cut).
    """
    if picture_size(picture) == (height, width):
        return to_array(picture)
    if resize == "crop":
        return to_array(_cover(picture, height, width))
    return to_array(_scale(picture, height, width))


def fit_mask(mask: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The mask [H, W] at another size: Lanczos as diffusers' mask processor, clipped to [0, 1]."""
    if mask.shape == (height, width):
        return mask
    scaled = Image.fromarray(mask, mode="F").resize((width, height), Image.Resampling.LANCZOS)
    return np.clip(np.asarray(scaled, dtype=np.float32), 0.0, 1.0)


def _open(field: str, path: str | Path) -> Image.Image:
    try:
        if not os.path.isfile(path):
            raise RequestError(field, Path(path).name, "a readable image file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
            _check_size(field, image.height, image.width)
            image.load()
        return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as bomb:
        raise LimitError(field, Path(path).name, f"at most {MAX_PIXELS} pixels") from bomb
    except RequestError:
        raise
    except Exception as problem:  # third-party decoders raise whatever a broken file provokes
        wants = f"a readable image file ({', '.join(FORMATS)})"
        raise RequestError(field, Path(path).name, wants) from problem


def _check_size(field: str, height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise RequestError(field, (height, width), f"sides of at least {MIN_SIDE} pixels")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise LimitError(field, (height, width), f"at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all")


def _from_pil(field: str, image: Image.Image) -> Picture:
    _check_size(field, image.height, image.width)
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16") or upright.mode == "I":
            return _from_array(field, np.asarray(upright).astype(np.float32) / 65535.0)
        if upright.mode == "F":
            return _from_array(field, np.asarray(upright))
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            layer = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return upright.convert("RGB") if upright.mode != "RGB" else upright.copy()
    except RequestError:
        raise
    except Exception as problem:  # images may be decoded only now, see `_open`
        raise RequestError(field, image.mode, "a complete image") from problem


def _tensor_to_array(field: str, tensor: torch.Tensor) -> NDArray[Any]:
    _check_dense(field, tensor)
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise RequestError(field, tuple(tensor.shape), "a tensor [3, H, W]")
    if not tensor.is_floating_point():
        raise RequestError(field, str(tensor.dtype), "float values in [0, 1]")
    return tensor.detach().float().cpu().permute(1, 2, 0).numpy()


def _check_dense(field: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise RequestError(field, f"{tensor.layout} on {tensor.device}", "a dense tensor with values")


def _from_array(field: str, array: NDArray[Any]) -> Picture:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise RequestError(field, tuple(array.shape), "an array [H, W, 3] or [H, W]")
    _check_size(field, array.shape[0], array.shape[1])
    channels = array[:, :, :3]
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(channels, (*array.shape[:2], 3))))
    if array.dtype.kind != "f":
        raise RequestError(field, str(array.dtype), "uint8 or a float type")
    values = np.array(np.broadcast_to(channels, (*array.shape[:2], 3)), dtype=np.float32)
    if not np.isfinite(values).all():
        raise RequestError(field, "NaN or infinity", "finite values")
    if values.min() < 0.0 or values.max() > 1.0:
        raise RequestError(field, (float(values.min()), float(values.max())), "float values in [0, 1]")
    values.setflags(write=False)
    return values


def _scale(picture: Picture, height: int, width: int) -> Picture:
    if isinstance(picture, Image.Image):
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    planes = [Image.fromarray(np.ascontiguousarray(picture[:, :, c]), mode="F") for c in range(3)]
    scaled = [np.asarray(p.resize((width, height), Image.Resampling.LANCZOS)) for p in planes]
    clipped: NDArray[np.float32] = np.clip(np.stack(scaled, axis=2), 0.0, 1.0)
    return clipped


def _cover(picture: Picture, height: int, width: int) -> Picture:
    own_height, own_width = picture_size(picture)
    factor = max(height / own_height, width / own_width)
    tall, wide = max(height, round(own_height * factor)), max(width, round(own_width * factor))
    scaled, top, left = _scale(picture, tall, wide), (tall - height) // 2, (wide - width) // 2
    if isinstance(scaled, Image.Image):
        return scaled.crop((left, top, left + width, top + height))
    cut: NDArray[np.float32] = scaled[top : top + height, left : left + width]
    return cut
