"""Control images and masks of a request as tensors of the generated size."""

import torch
from torch import Tensor

from bridle.errors import RequestError
from bridle.lowering import Window
from bridle.pictures import fit, picture_size
from bridle.request import as_mask, as_picture


def check_size(field: str, picture: object, size: tuple[int, int], resize: str) -> None:
    """Raises RequestError for resize="exact" and another size. size: (height, width)."""
    own = picture_size(as_picture(picture))
    if resize == "exact" and own != size:
        raise RequestError(field, own, f"(height, width) = {size}, or another resize mode")


def control_tensor(picture: object, size: tuple[int, int], resize: str) -> Tensor:
    """[1, 3, H, W] float32 in [0, 1]. size: (height, width)."""
    array = fit(as_picture(picture), size[0], size[1], resize)
    return torch.tensor(array).permute(2, 0, 1)[None]


def latent_mask(
    mask: object | None, canvas: tuple[int, int], window: Window | None, size: tuple[int, int], device: torch.device
) -> Tensor | None:
    """[1, 1, h, w] float32: the mean of the mask over the area of each cell of what a row sees.

    canvas: (h, w) of the whole image's latents. window: the part of it that the row sees. size: (h, w) of the result.
    """
    if mask is None:
        return None
    tensor = torch.tensor(as_mask(mask))[None, None]
    if window is not None:
        tensor = window.cut(torch.nn.functional.adaptive_avg_pool2d(tensor, canvas))
    return torch.nn.functional.adaptive_avg_pool2d(tensor, size).to(device)


def seen_image(image: Tensor, window: Window | None, factor: int) -> Tensor:
    """The part of an image [1, C, H, W] that a row sees. factor: pixels of a latent cell."""
    return image if window is None else window.scaled(factor).cut(image)
