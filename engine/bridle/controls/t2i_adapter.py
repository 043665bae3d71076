"""T2I-Adapter (arXiv 2302.08453): features of the control image, added inside the encoder of every row."""

from collections.abc import Sequence

from bridle.backends.reference import ReferenceBackend
from bridle.controls.control_image import check_size, control_tensor, latent_mask, seen_image
from bridle.errors import RequestError
from bridle.lowering import RowPlan, StaticResidual, by_window, window_scales
from bridle.networks.configs import AdapterConfig
from bridle.networks.layout import level_sizes
from bridle.networks.unet import adapter_points
from bridle.request import T2IAdapter
from bridle.weights import Component


def check(control: T2IAdapter, config: AdapterConfig, size: tuple[int, int], seen: tuple[int, int]) -> None:
    """Raises RequestError for what does not suit the network.

    size: (height, width) in pixels of the image. seen: of the part of it that a row sees.
    """
    check_size("T2IAdapter.image", control.image, size, control.resize)
    if config.in_channels not in (1, 3):
        raise RequestError("T2IAdapter.model", f"an adapter with {config.in_channels} channels", "1 or 3 channels")
    for name, side, whole in zip(("height", "width"), seen, size, strict=True):
        if side % config.downscale:
            field = name if side == whole else "Views.window"
            raise RequestError(field, side, f"a multiple of {config.downscale}, which this T2IAdapter needs")


def lower(
    backend: ReferenceBackend,
    control: T2IAdapter,
    component: Component[AdapterConfig],
    rows: Sequence[RowPlan],
    steps: int,
    size: tuple[int, int],
) -> None:
    """Adds the adapter's residuals to every row. size: (height, width) in pixels."""
    scale = window_scales(steps, control.start, control.end, control.scale)
    if not scale.any():
        return
    image, factor = control_tensor(control.image, size, control.resize), backend.model.vae.config.scale
    if component.config.in_channels == 1:
        image = image.mean(dim=1, keepdim=True)
    canvas = (size[0] // factor, size[1] // factor)
    points = adapter_points(backend.model.unet.config)
    for window, members in by_window(rows).items():
        seen = seen_image(image, window, factor).to(backend.device, backend.dtype)
        latent_size = (seen.shape[-2] // factor, seen.shape[-1] // factor)
        middle = level_sizes(latent_size, backend.model.unet.config.levels)[-1]
        for point, values in zip(points, backend.adapter_features(component, seen), strict=False):
            if point == "mid" and values.shape[2:] != middle:
                # A light adapter's last map for a network of three levels: diffusers leaves it out too.
                continue
            mask = latent_mask(control.mask, canvas, window, (values.shape[2], values.shape[3]), backend.device)
            for row in members:
                row.residuals.append(StaticResidual(point, values, scale, mask))
