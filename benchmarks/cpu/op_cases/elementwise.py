"""What reads and writes elements without a product."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.guide_step_blend import guide_step_blend
from cpu.op_cases.case import LEVELS, ROWS, Case, byte_count, image


def residual_add_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Residuals for all rows, in place, at every level: one ControlNet's, and those of two with masks."""
    for side, width in LEVELS:
        yield _residual_add_case(pool, dtype, side * side, width)
        yield _masked_residuals_case(pool, dtype, side * side, width)


def guide_step_blend_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Guidance and a step without history, for one and four images of 512x512."""
    for images in (1, 4):
        yield _guide_step_blend_case(dtype, images)


def copy_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Two images beside each other in their channels, at every level."""
    for side, width in LEVELS:
        yield _copy_case(pool, dtype, side, width)


def pointwise_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """ReLU, as adapters have it, at every level."""
    for side, width in LEVELS:
        yield _pointwise_case(pool, dtype, side, width)


def average_pool_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Means of 2x2, as adapters have them, at every level."""
    for side, width in LEVELS:
        yield _average_pool_case(pool, dtype, side, width)


def time_embedding_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """The table of a schedule of 50 steps."""
    half = 160
    t = torch.linspace(999.0, 0.0, 50)
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half))
    out = torch.empty(len(t), 2 * half, dtype=dtype)

    def ours() -> Tensor:
        _core.time_embedding(pool, t, frequencies, out, cosines_first=True)
        return out

    def theirs() -> Tensor:
        angles = t[:, None] * frequencies
        return torch.cat((angles.cos(), angles.sin()), -1).to(dtype)

    yield Case("time embedding", f"{len(t)}x{2 * half}", dtype, ours, theirs, bytes=byte_count(t, frequencies, out))


def _residual_add_case(pool: "_core.ThreadPool", dtype: torch.dtype, positions: int, width: int) -> Case:
    x, values = (torch.randn(ROWS, positions, width).to(dtype) for _ in range(2))
    mine, scale = x.clone(), 0.5
    terms = [_term(values, scale, None)]

    def ours() -> Tensor:
        _core.residual_add(pool, mine, terms)
        return mine

    shape = f"{ROWS}x{positions}x{width}"
    return Case("residual add", shape, dtype, ours, lambda: x.add_(values, alpha=scale), bytes=byte_count(x, x, values))


def _masked_residuals_case(pool: "_core.ThreadPool", dtype: torch.dtype, positions: int, width: int) -> Case:
    x, first, second = (torch.randn(ROWS, positions, width).to(dtype) for _ in range(3))
    masks = [torch.rand(ROWS, positions) for _ in range(2)]
    mine, scale = x.clone(), 0.5
    terms = [_term(values, scale, mask) for values, mask in zip((first, second), masks, strict=True)]
    own = [(scale * mask)[..., None].to(dtype) for mask in masks]

    def ours() -> Tensor:
        _core.residual_add(pool, mine, terms)
        return mine

    def theirs() -> Tensor:
        return x.addcmul_(first, own[0]).addcmul_(second, own[1])

    count = byte_count(x, x, first, second, *masks)
    return Case("residual add, 2 masked", f"{ROWS}x{positions}x{width}", dtype, ours, theirs, bytes=count)


def _term(values: Tensor, scale: float, mask: Tensor | None) -> dict[str, Any]:
    return {"values": values, "rows": list(range(ROWS)), "scale": [scale] * ROWS, "mask": mask}


def _guide_step_blend_case(dtype: torch.dtype, images: int) -> Case:
    eps, latents = torch.randn(2 * images, 4, 64, 64).to(dtype), torch.randn(images, 4, 64, 64)
    guidance, kept, added = 7.5, 0.9, 0.3
    zeros = torch.zeros(2 * images, dtype=torch.int32)
    arguments: dict[str, Any] = {
        "term_start": torch.arange(0, 2 * images + 1, 2, dtype=torch.int32),
        "term_row": torch.arange(2 * images, dtype=torch.int32),
        "term_coefficient": torch.tensor([1.0 - guidance, guidance] * images),
        "term_weight": zeros - 1,
        "term_top": zeros,
        "term_left": zeros,
        "coefficients": torch.tensor([[kept, added, 0.0]] * images),
    }

    def theirs() -> Tensor:
        without, with_text = eps.float().unflatten(0, (-1, 2)).unbind(1)
        return kept * latents + added * (without + guidance * (with_text - without))

    return Case(
        "guide_step_blend",
        f"{images} of 4x64x64",
        dtype,
        lambda: guide_step_blend(eps, latents=latents, **arguments)[0],
        theirs,
        bytes=byte_count(eps, latents, latents, latents),
    )


def _copy_case(pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int) -> Case:
    x, skip = image(side, width, dtype), image(side, width, dtype)
    out = torch.empty(ROWS, side, side, 2 * width, dtype=dtype)

    def ours() -> Tensor:
        _core.copy(pool, x.permute(0, 2, 3, 1), out[..., :width])
        _core.copy(pool, skip.permute(0, 2, 3, 1), out[..., width:])
        return out.permute(0, 3, 1, 2)

    shape = f"{ROWS}x{side}x{side}x{width}, twice"
    return Case("copy", shape, dtype, ours, lambda: torch.cat((x, skip), 1), bytes=byte_count(x, skip, out))


def _pointwise_case(pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int) -> Case:
    x = image(side, width, dtype)
    last, out = x.permute(0, 2, 3, 1), torch.empty(ROWS, side, side, width, dtype=dtype)

    def ours() -> Tensor:
        _core.pointwise(pool, last, out, activation="relu")
        return out.permute(0, 3, 1, 2)

    return Case("ReLU", f"{ROWS}x{side}x{side}x{width}", dtype, ours, lambda: torch.relu(x), bytes=byte_count(x, out))


def _average_pool_case(pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int) -> Case:
    x = image(side, width, dtype)
    last, out = x.permute(0, 2, 3, 1), torch.empty(ROWS, side // 2, side // 2, width, dtype=dtype)

    def ours() -> Tensor:
        _core.average_pool(pool, last, out)
        return out.permute(0, 3, 1, 2)

    shape = f"{ROWS}x{side}x{side}x{width}"
    return Case("average pool", shape, dtype, ours, lambda: F.avg_pool2d(x, 2), bytes=byte_count(x, out))
