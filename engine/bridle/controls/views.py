"""Views (MultiDiffusion, arXiv 2302.08113): windows of the canvas whose predictions are averaged."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.errors import RequestError
from bridle.lowering import RowPlan, Window
from bridle.region import Views


def check(backend: ReferenceBackend, views: Views, size: tuple[int, int]) -> None:
    """Raises RequestError for windows that do not fit. size: (height, width) in pixels."""
    factor = backend.model.vae.config.scale
    for name in ("window", "stride"):
        value = getattr(views, name)
        if value is not None and value % factor:
            raise RequestError(f"Views.{name}", value, f"a multiple of {factor}")
    window = _window(backend, views)
    if views.window is not None and views.window > max(size):
        raise RequestError("Views.window", views.window, f"at most the longer side of the image, {max(size)}")
    if views.stride is not None and views.stride > window * factor:
        raise RequestError("Views.stride", views.stride, f"at most the window, {window * factor}")
    if views.circular and window * factor > size[1]:
        raise RequestError("Views.circular", True, f"a width of at least the window, {window * factor}")


def count(backend: ReferenceBackend, views: Views, latent_size: tuple[int, int]) -> int:
    """The number of `windows`."""
    tops, lefts, _ = _corners(backend, views, latent_size)
    return len(tops) * len(lefts)


def windows(backend: ReferenceBackend, views: Views, latent_size: tuple[int, int]) -> tuple[Window, ...]:
    """The windows of a canvas (h, w) in latent cells, row by row. A side shorter than the window is one window long.

    Official: `get_views` of omerbt/MultiDiffusion; the last window is moved back to the edge where the stride does not
    divide the rest, so that nothing is left out. Circular ones begin at every stride and wrap around the right edge.
    """
    tops, lefts, (height, width) = _corners(backend, views, latent_size)
    return tuple(Window(top, left, height, width) for top in tops for left in lefts)


def _corners(
    backend: ReferenceBackend, views: Views, latent_size: tuple[int, int]
) -> tuple[Sequence[int], Sequence[int], tuple[int, int]]:
    """Tops, lefts and (height, width) of the windows."""
    side = _window(backend, views)
    stride = side // 8 if views.stride is None else views.stride // backend.model.vae.config.scale
    stride = max(1, stride)
    height, width = min(side, latent_size[0]), min(side, latent_size[1])
    tops = _starts(latent_size[0], height, stride)
    lefts = range(0, latent_size[1], stride) if views.circular else _starts(latent_size[1], width, stride)
    return tops, lefts, (height, width)


def split(rows: Sequence[RowPlan], found: Sequence[Window], latent_size: tuple[int, int]) -> list[RowPlan]:
    """Every row once per window, weighted so that each cell of the canvas is averaged; rows of no weight are left out."""
    total = torch.zeros(latent_size)
    for window in found:
        for group in _groups(rows):
            window.add_to(total, _blend(group[0], window))
    parts: list[RowPlan] = []
    for window in found:
        for group in _groups(rows):
            blend = _blend(group[0], window) / window.cut(total).clamp(min=torch.finfo(torch.float32).tiny)
            if bool(blend.any()):
                parts.extend(row.alone(window=window, blend=blend) for row in group)
    return parts


def _groups(rows: Sequence[RowPlan]) -> list[list[RowPlan]]:
    """Rows of one region: they share a blend."""
    groups: dict[int | None, list[RowPlan]] = {}
    for row in rows:
        groups.setdefault(row.region, []).append(row)
    return list(groups.values())


def _blend(row: RowPlan, window: Window) -> Tensor:
    return torch.ones(window.height, window.width) if row.blend is None else window.cut(row.blend)


def _window(backend: ReferenceBackend, views: Views) -> int:
    """In latent cells."""
    if views.window is None:
        return max(backend.model.unet.config.sample_size)
    return views.window // backend.model.vae.config.scale


def _starts(length: int, window: int, stride: int) -> list[int]:
    starts = list(range(0, length - window + 1, stride))
    return starts if starts[-1] == length - window else [*starts, length - window]
