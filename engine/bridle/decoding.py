"""Latents -> the result of a request."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bridle.backends.reference import ReferenceBackend
from bridle.errors import NumericFault
from bridle.heat_maps import normalise_each, word_maps
from bridle.lowering import Window
from bridle.map_controls import CaptureMaps
from bridle.request_checks import Prepared
from bridle.request_json import Loading, a1111_parameters, request_to_json
from bridle.result import Images, Result
from bridle.track import MapRecord, Track

WRAP = 8
"""Latent columns that a circular panorama is continued by for decoding, as in diffusers' panorama pipeline."""


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
    own = [track for track in tracks if track.shown]
    sources = [track.source for track in own if track.source is not None]
    metadata = tuple(
        (a1111_parameters(prepared, seed, backend.model), request_to_json(request, index, loading))
        for index, seed in enumerate(request.seeds)
    )
    try:
        images = _images(backend, prepared, own)
        source_images = _images(backend, prepared, sources) if sources else None
    except NumericFault as fault:
        return fault
    return Result(
        images,
        _stacked(own),
        timings,
        request,
        backend.name,
        metadata,
        isa=backend.isa,
        maps=_maps(prepared, own),
        source_images=source_images,
        source_latents=_stacked(sources) if sources else None,
    )


def _stacked(tracks: Sequence[Track]) -> torch.Tensor:
    with torch.inference_mode(False):  # the caller may change them and take gradients
        return torch.stack([track.latents for track in tracks]).float().cpu()


def _images(backend: ReferenceBackend, prepared: Prepared, tracks: Sequence[Track]) -> Images:
    """In the request's output type. Raises NumericFault."""
    request = prepared.request
    if request.output_type == "latent":
        return _stacked(tracks)
    arrays = np.stack([decode_latents(backend, prepared, track) for track in tracks])
    if request.output_type == "np":
        return arrays
    return [Image.fromarray((array * 255.0).round().astype(np.uint8)) for array in arrays]


def decode_latents(backend: ReferenceBackend, prepared: Prepared, track: Track) -> NDArray[np.float32]:
    """[H, W, 3] float32 in [0, 1]. One image at a time, so that the bytes do not depend on the others. Raises NumericFault.

    Images of several views are decoded in tiles; circular ones with their own other end on both sides, so that the ends
    meet.
    """
    latents = track.latents[None].to(backend.device, backend.dtype)
    height, width = prepared.latent_size
    views = prepared.request.views
    circular = views is not None and views.circular
    if circular:
        latents = Window(0, -WRAP, height, width + 2 * WRAP).cut(latents)
    image = backend.decode_image(latents, prepared.request.vae_tiling or len(prepared.windows) > 1)[0].float()
    if circular:
        margin = WRAP * backend.model.vae.config.scale
        image = image[..., margin:-margin]
    if not bool(torch.isfinite(image).all()):
        raise NumericFault(track.step, "decode")
    return (image / 2.0 + 0.5).clamp(0.0, 1.0).permute(1, 2, 0).cpu().numpy()


def _maps(prepared: Prepared, tracks: Sequence[Track]) -> dict[str, NDArray[np.float32]]:
    """[B, H, W] per captured word. The records of a track begin with those of the request's `CaptureMaps`, in order."""
    found: dict[str, NDArray[np.float32]] = {}
    captures = [control for control in prepared.request.attention if isinstance(control, CaptureMaps)]
    for place, control in enumerate(captures):
        images = [_word_maps(prepared, control, track.records[place]) for track in tracks]
        maps = np.stack(images)
        found.update({word: maps[:, index] for index, word in enumerate(control.words)})
    return found


def _word_maps(prepared: Prepared, control: CaptureMaps, record: MapRecord) -> NDArray[np.float32]:
    """[W, H, W'] of one image."""
    captured = [sums.reshape(1, -1, *record.sizes[level]) for level, sums in record.sums.items()]
    tokens = [[record.columns.index(column) for column in prepared.columns[word]] for word in control.words]
    return normalise_each(word_maps(captured, tokens, prepared.size))[0].cpu().numpy()
