"""Images of a request -> latents: image-to-image, inpainting with both kinds of U-Net, depth.

Every random draw comes from the image's own source of noise, in the order of diffusers' pipelines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.errors import RequestError
from bridle.noise import NoiseSource, StartDraw
from bridle.pictures import fit, fit_mask
from bridle.request import Request, as_mask, as_picture
from bridle.solvers import SolverTable
from bridle.track import KnownRegion

INPAINTING_CHANNELS = 9
DEPTH_CHANNELS = 5
Moments = tuple[Tensor, Tensor | None]
"""Mean and log-variance of the encoder's distribution, [1, 4, h, w] each; no variance for AutoencoderTiny."""


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Encoder outputs that all images of a request share. Moments are (mean, log-variance or None), [1, 4, h, w].

    image: of `image`. masked: of `image` outside the mask, for inpainting U-Nets. mask: [1, 1, h, w], 0 or 1.
    depth: [1, 1, h, w] in [-1, 1].
    """

    image: Moments | None = None
    masked: Moments | None = None
    mask: Tensor | None = None
    depth: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Initial latents and their noise [1, 4, h, w], extra input channels [1, Cx, h, w] or None, known region or None."""

    latents: Tensor
    noise: Tensor
    extra_channels: Tensor | None
    known: KnownRegion | None


def check_images(backend: ReferenceBackend, request: Request) -> None:
    """Raises RequestError where the pictures do not suit the model's U-Net."""
    channels = backend.model.unet.config.in_channels
    if channels == INPAINTING_CHANNELS and request.mask_image is None:
        raise RequestError("mask_image", None, "a mask: this model's U-Net is made for inpainting")
    if channels == DEPTH_CHANNELS and request.depth_image is None:
        raise RequestError("depth_image", None, "a depth map: this model's U-Net is conditioned on depth")
    if channels != DEPTH_CHANNELS and request.depth_image is not None:
        raise RequestError("depth_image", "a picture", f"None: this model's U-Net has {channels} input channels")
    if channels == DEPTH_CHANNELS and request.mask_image is not None:
        raise RequestError("mask_image", "a mask", "None: this model's U-Net is conditioned on depth")


def encode_images(backend: ReferenceBackend, request: Request, size: tuple[int, int]) -> EncodedImages:
    """Runs the encoder. size: (height, width) in pixels."""
    scale = backend.model.vae.config.scale
    latent_size = (size[0] // scale, size[1] // scale)
    depth = None if request.depth_image is None else _depth(request, size, latent_size).to(backend.device)
    if request.image is None:
        return EncodedImages(depth=depth)
    image = torch.tensor(fit(as_picture(request.image), *size, "stretch")).permute(2, 0, 1)[None] * 2.0 - 1.0
    if request.mask_image is None:
        return EncodedImages(image=encode_moments(backend, image, request.vae_tiling), depth=depth)
    pixel_mask = torch.tensor(fit_mask(as_mask(request.mask_image), *size) >= 0.5, dtype=torch.float32)[None, None]
    mask = torch.nn.functional.interpolate(pixel_mask, latent_size)
    inpainting = backend.model.unet.config.in_channels == INPAINTING_CHANNELS
    return EncodedImages(
        image=None if inpainting and request.strength == 1.0 else encode_moments(backend, image, request.vae_tiling),
        masked=encode_moments(backend, image * (pixel_mask < 0.5), request.vae_tiling) if inpainting else None,
        mask=mask.to(backend.device),
    )


def start(
    backend: ReferenceBackend,
    request: Request,
    images: EncodedImages,
    table: SolverTable,
    injected: Tensor | None,
    latent_size: tuple[int, int],
    source: NoiseSource,
) -> Start:
    """Where one image starts. injected: [1, 4, h, w] standard normal noise instead of the source's."""
    clean = None if images.image is None else _sample(images.image, source, StartDraw.IMAGE)
    shape = (1, 4, *latent_size)
    noise = source.start(StartDraw.LATENTS, shape) if injected is None else injected
    noise = noise.to(backend.device)
    mask_channels = _mask_channels(images, source)
    extra = mask_channels if mask_channels is not None else images.depth
    known = None
    if images.mask is not None and mask_channels is None and clean is not None:
        known = KnownRegion(clean=clean[0], noise=noise[0], mask=images.mask[0])
    latents = _initial(request, clean, noise, table)
    return Start(latents, noise, None if extra is None else extra.to(backend.dtype), known)


def _initial(request: Request, clean: Tensor | None, noise: Tensor, table: SolverTable) -> Tensor:
    """Pure noise for text-to-image and inpainting at full strength, else the noised image (diffusers)."""
    from_noise = clean is None or (request.mask_image is not None and request.strength == 1.0)
    if clean is None or from_noise:
        return noise * table.init_noise_sigma
    a, s = (float(value) for value in table.add_noise[0])
    return a * clean + s * noise if s != 0.0 else clean.clone()


def _mask_channels(images: EncodedImages, source: NoiseSource) -> Tensor | None:
    """[1, 5, h, w]: mask, then the latents of the masked image (controls.md section 1b)."""
    if images.masked is None or images.mask is None:
        return None
    return torch.cat([images.mask, _sample(images.masked, source, StartDraw.MASKED_IMAGE)], dim=1)


def encode_moments(backend: ReferenceBackend, image: Tensor, tiling: bool) -> Moments:
    """Mean and log-variance of the latents of an image [1, 3, H, W] in [-1, 1], in the sampler's scale."""
    mean, log_variance = backend.encode_image(image.to(backend.device, backend.dtype), tiling)
    return mean.float(), None if log_variance is None else log_variance.float()


def from_moments(moments: Moments, noise: Tensor) -> Tensor:
    """A draw from the encoder's distribution by standard normal noise, as diffusers' `retrieve_latents`."""
    mean, log_variance = moments
    return mean if log_variance is None else mean + torch.exp(0.5 * log_variance) * noise.to(mean.device)


def _sample(moments: Moments, source: NoiseSource, draw: StartDraw) -> Tensor:
    mean, log_variance = moments
    if log_variance is None:
        return mean
    return from_moments(moments, source.start(draw, tuple(mean.shape)))


def _depth(request: Request, size: tuple[int, int], latent_size: tuple[int, int]) -> Tensor:
    """[1, 1, h, w]: bicubic at latent size, then stretched to [-1, 1]; a flat map is -1 everywhere."""
    picture = as_picture(request.depth_image)
    array = torch.tensor(fit(picture, *size, "stretch")).mean(dim=2)[None, None]
    depth = torch.nn.functional.interpolate(array, latent_size, mode="bicubic", align_corners=False)
    span = depth.max() - depth.min()
    return 2.0 * (depth - depth.min()) / span - 1.0 if float(span) > 0.0 else torch.full_like(depth, -1.0)
