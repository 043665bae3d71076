"""Group norm of images with channels last, on a GPU: statistics of slices of pixels, their merge, the normalisation.

Statistics are float32 means and sums of squared deviations, merged in a fixed order by the formula of Chan, Golub and
LeVeque (1983): no cancellation of large sums, no atomics.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bridle_kernels.triton_launch import launch
from bridle_kernels.triton_variant import DTYPES, Variant

PIXELS = 64
"""Pixels of a tile."""
SLICE = 1024
"""Pixels that one program reads for the statistics."""
CHANNELS = 64
"""Channels of a tile of the normalisation."""


@triton.jit
def _read(a, b, pixel, channel, valid, first, second, PAIR: tl.constexpr):
    """float32 values; channels from `first` on come from b. pixel: counted over all rows."""
    own = valid & (channel < first)[None, :]
    value = tl.load(a + pixel[:, None] * first + channel[None, :], mask=own, other=0.0).to(tl.float32)
    if PAIR:
        other = valid & (channel >= first)[None, :]
        at = b + pixel[:, None] * second + (channel - first)[None, :]
        value += tl.load(at, mask=other, other=0.0).to(tl.float32)
    return value


@triton.jit
def _slices(
    a, b, partial, pixels, first, second, width, SLICE: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
    PAIR: tl.constexpr
):  # fmt: skip
    """Mean and sum of squared deviations of one row, group and slice of pixels."""
    s = tl.program_id(0)
    g = tl.program_id(1)
    r = tl.program_id(2).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    channel = g * width + lane
    count = 0.0
    mean = 0.0
    deviation = 0.0
    for start in range(s * SLICE, tl.minimum((s + 1) * SLICE, pixels), PIXELS):
        p = start + tl.arange(0, PIXELS)
        valid = (p < pixels)[:, None] & (lane < width)[None, :]
        x = _read(a, b, r * pixels + p, channel, valid, first, second, PAIR)
        number = (tl.minimum(pixels - start, PIXELS) * width).to(tl.float32)
        own = tl.sum(x) / number
        off = tl.where(valid, x - own, 0.0)
        total = count + number
        step = own - mean
        deviation += tl.sum(off * off) + step * step * (count * number / total)
        mean += step * (number / total)
        count = total
    at = partial + 2 * ((r * tl.num_programs(1) + g) * tl.num_programs(0) + s)
    tl.store(at, mean)
    tl.store(at + 1, deviation)


@triton.jit
def _merge(partial, statistics, slices, pixels, width, eps, SLICE: tl.constexpr):
    """Mean and 1 / standard deviation of one row and group."""
    i = tl.program_id(0).to(tl.int64)
    count = 0.0
    mean = 0.0
    deviation = 0.0
    for s in range(0, slices):
        number = (tl.minimum(pixels - s * SLICE, SLICE) * width).to(tl.float32)
        at = partial + 2 * (i * slices + s)
        total = count + number
        step = tl.load(at) - mean
        deviation += tl.load(at + 1) + step * step * (count * number / total)
        mean += step * (number / total)
        count = total
    tl.store(statistics + 2 * i, mean)
    tl.store(statistics + 2 * i + 1, 1.0 / tl.sqrt_rn(deviation / count + eps))


@triton.jit
def _normalise(
    a, b, out, statistics, weight, bias, scale, shift, pixels, first, second, groups, width, PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr, PAIR: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr
):  # fmt: skip
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    r = tl.program_id(2).to(tl.int64)
    channels = groups * width
    present = channel < channels
    valid = (p < pixels)[:, None] & present[None, :]
    x = _read(a, b, r * pixels + p, channel, valid, first, second, PAIR)
    own = statistics + 2 * (r * groups + channel // width)
    mean = tl.load(own, mask=present, other=0.0)
    spread = tl.load(own + 1, mask=present, other=0.0)
    factor = spread * tl.load(weight + channel, mask=present, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=present, other=0.0).to(tl.float32)
    x = (x - mean[None, :]) * factor[None, :] + offset[None, :]
    if SCALE:
        x *= 1.0 + tl.load(scale + r * channels + channel, mask=present, other=0.0).to(tl.float32)[None, :]
    if SHIFT:
        x += tl.load(shift + r * channels + channel, mask=present, other=0.0).to(tl.float32)[None, :]
    if SILU:
        x = x / (1.0 + tl.exp(-x))
    at = out + (r * pixels + p)[:, None] * channels + channel[None, :]
    tl.store(at, x.to(out.dtype.element_ty), mask=valid)


def statistics(sources: tuple[Tensor, ...], groups: int, eps: float) -> Tensor:
    """[R, groups, 2] float32, means and 1 / standard deviations, of one or two images [R, P, C], each contiguous."""
    rows, pixels = sources[0].shape[:2]
    width = sum(source.shape[2] for source in sources) // groups
    slices = triton.cdiv(pixels, SLICE)
    partial = sources[0].new_empty(rows, groups, slices, 2, dtype=torch.float32)
    found = sources[0].new_empty(rows, groups, 2, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    given = {**_images(sources), "partial": partial, "pixels": pixels, "width": width}
    tile = {"SLICE": SLICE, "PIXELS": PIXELS, "BLOCK": block, "PAIR": len(sources) == 2}
    launch(_slices, (slices, groups, rows), given, tile)
    merged = {"partial": partial, "statistics": found, "slices": slices, "pixels": pixels, "width": width, "eps": eps}
    launch(_merge, (rows * groups,), merged, {"SLICE": SLICE}, num_warps=1)
    return found


def _images(sources: tuple[Tensor, ...]) -> dict[str, Any]:
    """One or two images and their channels."""
    one, other = sources[0], sources[-1]
    return {"a": one, "b": other, "first": one.shape[2], "second": other.shape[2]}


def group_norm(
    sources: tuple[Tensor, ...],
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """[R, P, C]: the group norm of one or two images [R, P, C'], each contiguous, whose channels add up to C.

    scale, shift: [R, C], contiguous. known: `statistics` of the same images, None to compute them.
    """
    known = statistics(sources, groups, eps) if known is None else known
    rows, pixels = sources[0].shape[:2]
    channels = weight.shape[0]
    out = sources[0].new_empty(rows, pixels, channels)
    given = {
        **_images(sources),
        "out": out,
        "statistics": known,
        "weight": weight,
        "bias": bias,
        "scale": scale,
        "shift": shift,
        "pixels": pixels,
        "groups": groups,
        "width": channels // groups,
    }
    flags = {"PAIR": len(sources) == 2, "SCALE": scale is not None, "SHIFT": shift is not None, "SILU": silu}
    grid = (triton.cdiv(pixels, PIXELS), triton.cdiv(channels, CHANNELS), rows)
    launch(_normalise, grid, given, {"PIXELS": PIXELS, "CHANNELS": CHANNELS, **flags})
    return out


def variants() -> list[Variant]:
    """Statistics of the group widths of the published networks, and their normalisations: of one image or two, with and
    without SiLU, and with an affine per row."""
    found = [Variant("group_norm_merge", _merge, _types(_merge, "fp32"), {"SLICE": SLICE}, num_warps=1)]
    for dtype in DTYPES.values():
        for pair in (False, True):
            found += [_slices_variant(dtype, block, pair) for block in (4, 8, 16, 32, 64, 128)]
            found += [_normalise_variant(dtype, pair, silu, False) for silu in (False, True)]
        found.append(_normalise_variant(dtype, False, True, True))
    return found


def _slices_variant(dtype: str, block: int, pair: bool) -> Variant:
    constants = {"SLICE": SLICE, "PIXELS": PIXELS, "BLOCK": block, "PAIR": pair}
    name = f"group_norm_slices_{block}{'_pair' if pair else ''}_{dtype}"
    return Variant(name, _slices, _types(_slices, dtype), constants)


def _normalise_variant(dtype: str, pair: bool, silu: bool, affine: bool) -> Variant:
    flags = {"PAIR": pair, "SCALE": affine, "SHIFT": affine, "SILU": silu}
    absent: dict[str, None] = {} if affine else {"scale": None, "shift": None}
    types = {name: kind for name, kind in _types(_normalise, dtype).items() if name not in absent}
    on = "".join(f"_{name.lower()}" for name, flag in flags.items() if flag)
    constants: dict[str, int | bool | None] = {"PIXELS": PIXELS, "CHANNELS": CHANNELS, **flags, **absent}
    return Variant(f"group_norm{on}_{dtype}", _normalise, types, constants, multiples=("first", "second"))


def _types(kernel: Any, dtype: str) -> dict[str, str | tuple[str, ...]]:
    images = ("a", "b", "out", "weight", "bias", "scale", "shift")
    known = {**dict.fromkeys(images, f"*{dtype}"), **dict.fromkeys(("partial", "statistics"), "*fp32"), "eps": "fp32"}
    return {name: known.get(name, "i32") for name in kernel.arg_names if not name.isupper()}
