"""Control images and masks of a request as tensors of the generated size."""

import torch
from torch import Tensor

from bridle.pictures import fit
from bridle.request import as_mask, as_picture


def control_tensor(field: str, picture: object, size: tuple[int, int], resize: str) -> Tensor:
    """[1, 3, H, W] float32 in [0, 1]. size: (height, width). Raises RequestError for resize="exact" and another size."""
    array = fit(field, as_picture(picture), size[0], size[1], resize)
    return torch.tensor(array).permute(2, 0, 1)[None]


def latent_mask(mask: object | None, size: tuple[int, int], device: torch.device) -> Tensor | None:
    """[1, 1, h, w] float32: the mean of the mask over the area of each latent cell. size: (h, w)."""
    if mask is None:
        return None
    tensor = torch.tensor(as_mask(mask))[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(tensor, size).to(device)
