"""Latents -> the result of a request."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bridle.backends.reference import ReferenceBackend
from bridle.errors import NumericFault
from bridle.request_checks import Prepared
from bridle.request_json import Loading, a1111_parameters, request_to_json
from bridle.result import Result
from bridle.track import Track


def decode_result(
    backend: ReferenceBackend,
    prepared: Prepared,
    tracks: Sequence[Track],
    timings: Mapping[str, float],
    loading: Loading,
) -> Result | Exception:
    """The result of one request from its finished tracks, or the first error of them."""
    for track in tracks:
        if track.error is not None:
            return track.error
    request = prepared.request
    with torch.inference_mode(False):  # the caller may change them and take gradients
        latents = torch.stack([track.latents for track in tracks]).float().cpu()
    metadata = tuple(
        (a1111_parameters(prepared, seed, backend.model), request_to_json(request, index, loading))
        for index, seed in enumerate(request.seeds)
    )
    if request.output_type == "latent":
        return Result(latents, latents, timings, request, backend.name, metadata)
    try:
        arrays = np.stack([decode_latents(backend, track, request.vae_tiling) for track in tracks])
    except NumericFault as fault:
        return fault
    if request.output_type == "np":
        return Result(arrays, latents, timings, request, backend.name, metadata)
    pictures = [Image.fromarray((array * 255.0).round().astype(np.uint8)) for array in arrays]
    return Result(pictures, latents, timings, request, backend.name, metadata)


def decode_latents(backend: ReferenceBackend, track: Track, tiling: bool) -> NDArray[np.float32]:
    """[H, W, 3] float32 in [0, 1]. One image at a time, so that the bytes do not depend on the others. Raises NumericFault."""
    latents = track.latents[None].to(backend.device, backend.dtype)
    image = backend.decode_image(latents, tiling)[0].float()
    if not bool(torch.isfinite(image).all()):
        raise NumericFault(track.step, "decode")
    return (image / 2.0 + 0.5).clamp(0.0, 1.0).permute(1, 2, 0).cpu().numpy()
