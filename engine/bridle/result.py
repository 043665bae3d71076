"""What a request gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bridle.errors import BridleError
from bridle.heat_maps import sheet
from bridle.png_metadata import write_png
from bridle.request import Request

Images = list[Image.Image] | NDArray[np.float32] | Tensor
"""PIL images, an array [B, H, W, 3], or latents."""


@dataclass(frozen=True, slots=True)
class Result:
    """images: PIL images, or float32 [B, H, W, 3] in [0, 1] for output_type "np", or the latents for "latent".

    latents: float32 [B, 4, h, w], always there. timings: seconds per stage ("text", "controls", "images", "denoise",
    "decode"), shared by the requests of one call. request: as it was asked. backend: which one ran. metadata: what
    `save` writes into each PNG (see `request_json`). maps: float32 [B, H, W] in [0, 1] per word of `CaptureMaps`, each map
    divided by its maximum. isa: the instruction set of the CPU core, whose bits are the same on one of them, None for other
    backends. source_images, source_latents: what a `PromptEdit` edited, in the form of images and latents.
    """

    images: Images
    latents: Tensor
    timings: Mapping[str, float]
    request: Request
    backend: str
    metadata: tuple[tuple[str, Mapping[str, object]], ...]
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    source_images: Images | None = None
    source_latents: Tensor | None = None
    isa: str | None = None

    def heat_map_sheet(self, index: int = 0) -> Image.Image:
        """Image `index` under the map of each word of `maps`, side by side."""
        if not isinstance(self.images, list) or not self.maps:
            raise TypeError("heat_map_sheet: only results with CaptureMaps and output_type='pil' have one")
        return sheet(self.images[index], {word: heat[index] for word, heat in self.maps.items()})

    def save(self, path: str | Path, index: int = 0, metadata: bool = True) -> None:
        """Writes image `index` as PNG, with the A1111 `parameters` text and the replayable request unless switched off."""
        images = self.images
        if not isinstance(images, list):
            raise TypeError("save: only results with output_type='pil' can be saved as PNG")
        if metadata:
            parameters, request_json = self.metadata[index]
            write_png(images[index], path, dict(request_json), parameters)
        else:
            images[index].save(path)


class BatchError(BridleError):
    """Some requests of a list failed. results: one per request, a Result or the exception that ended it."""

    def __init__(self, results: list[Result | Exception]) -> None:
        self.results = results
        failed = [index for index, result in enumerate(results) if isinstance(result, Exception)]
        first = results[failed[0]]
        super().__init__(f"{len(failed)} of {len(results)} requests failed, first request {failed[0]}: {first}")
