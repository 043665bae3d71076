"""ControlNet (arXiv 2302.05543): a branch per row whose outputs are residuals on the skip connections."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bridle.backends.reference import ReferenceBackend
from bridle.controls.control_image import check_size, control_tensor, latent_mask, seen_image
from bridle.errors import RequestError
from bridle.lowering import BranchPlan, RowPlan, by_window, window_scales
from bridle.networks.configs import ControlNetConfig
from bridle.networks.unet import controlnet_points
from bridle.request import ControlNet
from bridle.rows import KV
from bridle.weights import Component


def check(control: ControlNet, config: ControlNetConfig, size: tuple[int, int]) -> None:
    """Raises RequestError for what does not suit the network. size: (height, width) in pixels."""
    check_size("ControlNet.image", control.image, size, control.resize)
    points = len(controlnet_points(config))
    if control.layer_weights is not None and len(control.layer_weights) != points:
        raise RequestError("ControlNet.layer_weights", f"{len(control.layer_weights)} weights", f"{points} weights")


def lower(
    backend: ReferenceBackend,
    control: ControlNet,
    component: Component[ControlNetConfig],
    rows: Sequence[RowPlan],
    timesteps: torch.Tensor,
    size: tuple[int, int],
) -> None:
    """Adds the branch to the rows it acts on. timesteps: [S] float32. size: (height, width) in pixels."""
    scale = _scales(control, component.config, len(timesteps))
    if not scale.any():
        return
    image, factor = control_tensor(control.image, size, control.resize), backend.model.vae.config.scale
    canvas = (size[0] // factor, size[1] // factor)
    acting = [row for row in rows if row.conditional or not control.guess_mode]
    texts = _texts(backend, component, acting, timesteps)
    for window, members in by_window(acting).items():
        hint = backend.encode_hint(component, seen_image(image, window, factor).to(backend.device, backend.dtype))
        mask = latent_mask(control.mask, canvas, window, (hint.shape[2], hint.shape[3]), backend.device)
        for row in members:
            time, kv = texts[id(row.context)]
            branch = BranchPlan(
                weights=component.tensors,
                config=component.config,
                time=time,
                kv=kv,
                hint=hint,
                scale=scale,
                mask=mask,
                global_pool=component.config.global_pool,
            )
            row.branches.append(branch)


def _texts(
    backend: ReferenceBackend,
    component: Component[ControlNetConfig],
    rows: Sequence[RowPlan],
    timesteps: torch.Tensor,
) -> dict[int, tuple[torch.Tensor, tuple[KV, ...]]]:
    """The network's own time table and text keys and values, once for rows that share a context. By the context's id."""
    found: dict[int, tuple[torch.Tensor, tuple[KV, ...]]] = {}
    for row in rows:
        if id(row.context) not in found:
            added = None
            if row.pooled is not None and row.time_ids is not None:
                added = backend.added_embedding(component, row.pooled, row.time_ids)
            time = backend.time_table(component, timesteps, added)
            found[id(row.context)] = time, backend.cross_kv(component, row.context)
    return found


def guess_factors(name: str, points: int) -> NDArray[np.float64]:
    """[points], shallowest first: how guess mode weakens the residuals.

    "diffusers": logspace(-1, 0) (models/controlnets/controlnet.py). "official": 0.825^(points - 1 - i)
    (lllyasviel/ControlNet, gradio_canny2image.py).
    """
    if name == "diffusers":
        return np.logspace(-1.0, 0.0, points)
    return 0.825 ** np.arange(points - 1, -1, -1, dtype=np.float64)


def _scales(control: ControlNet, config: ControlNetConfig, steps: int) -> NDArray[np.float32]:
    """[S, points]."""
    points = len(controlnet_points(config))
    factors = np.ones(points)
    if control.guess_mode and not config.global_pool:
        factors = guess_factors(control.guess_scales, points)
    if control.layer_weights is not None:
        factors = factors * np.array(control.layer_weights)
    window = window_scales(steps, control.start, control.end, control.scale)
    return (window[:, None] * factors[None, :]).astype(np.float32)
