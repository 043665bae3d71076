"""The GPU kernel. One program per sample and block of pixels; float32 arithmetic in the definition's order, no atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bridle_kernels.counter_noise.triton import standard_normal
from bridle_kernels.triton_launch import launch
from bridle_kernels.triton_variant import DTYPES, Variant

BLOCK = 256


@triton.jit
def _add(total, pointers, coefficient, valid):
    if coefficient != 0.0:
        total += tl.load(pointers, mask=valid, other=0.0) * coefficient
    return total


@triton.jit
def _kernel(
    eps,
    term_start,
    term_row,
    term_coefficient,
    term_weight,
    term_top,
    term_left,
    weights,
    latents,
    history,
    coefficients,
    noise,
    noise_source,
    noise_scale,
    known,
    known_noise,
    known_coefficients,
    mask,
    has_known,
    out,
    model_output,
    height,
    width,
    window_height,
    window_width,
    channels,
    HISTORY: tl.constexpr,
    NOISE: tl.constexpr,
    DRAWS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    KNOWN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # 64-bit offsets: a batch of large latents passes 2^31 elements.
    p = tl.program_id(0).to(tl.int64)
    plane = tl.cast(height, tl.int64) * width
    count = channels * plane
    i = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = i < count
    c = i // plane
    y = (i % plane) // width
    x = i % width
    here = p * count + i
    m = tl.zeros([BLOCK], tl.float32)
    for t in range(tl.load(term_start + p), tl.load(term_start + p + 1)):
        line = y - tl.load(term_top + t)
        column = (x - tl.load(term_left + t) + width) % width
        covered = valid & (line >= 0) & (line < window_height) & (column < window_width)
        cell = line * window_width + column
        row = tl.load(term_row + t).to(tl.int64)
        plane_of_row = (row * channels + c) * window_height * window_width
        value = tl.load(eps + plane_of_row + cell, mask=covered, other=0.0).to(tl.float32)
        value = value * tl.load(term_coefficient + t)
        if WEIGHTS:
            index = tl.load(term_weight + t).to(tl.int64)
            if index >= 0:
                cells = weights + index * window_height * window_width + cell
                value = value * tl.load(cells, mask=covered, other=0.0)
        m = tl.where(covered, m + value, m)
    tl.store(model_output + here, m, mask=valid)
    # A coefficient of 0 skips its term: 0 * Inf would be NaN.
    own = coefficients + p * (3 + HISTORY)
    total = _add(tl.zeros([BLOCK], tl.float32), latents + here, tl.load(own), valid)
    b = tl.load(own + 1)
    if b != 0.0:
        total += m * b
    if NOISE or DRAWS:
        amount = tl.load(own + 2)
        if amount != 0.0:
            z = tl.zeros([BLOCK], tl.float32)
            if NOISE:
                z = tl.load(noise + here, mask=valid, other=0.0)
            if DRAWS:
                seed = tl.load(noise_source + 2 * p)
                step = tl.load(noise_source + 2 * p + 1)
                for draw in tl.range(DRAWS):
                    scale = tl.load(noise_scale + p * DRAWS + draw)
                    if scale != 0.0:
                        z += standard_normal(seed, step, draw, i) * scale
            total += z * amount
    if HISTORY:
        for h in range(HISTORY):
            total = _add(total, history + (p * HISTORY + h) * count + i, tl.load(own + 3 + h), valid)
    if KNOWN:
        if tl.load(has_known + p) != 0:
            level = _add(tl.zeros([BLOCK], tl.float32), known + here, tl.load(known_coefficients + 2 * p), valid)
            level = _add(level, known_noise + here, tl.load(known_coefficients + 2 * p + 1), valid)
            inside = tl.load(mask + p * plane + i % plane, mask=valid, other=0.0)
            total = inside * total + (1.0 - inside) * level
    tl.store(out + here, total, mask=valid)


def guide_step_blend(
    eps: Tensor,
    *,
    term_start: Tensor,
    term_row: Tensor,
    term_coefficient: Tensor,
    term_weight: Tensor,
    term_top: Tensor,
    term_left: Tensor,
    weights: Tensor | None,
    latents: Tensor,
    history: Tensor | None,
    coefficients: Tensor,
    noise: Tensor | None,
    noise_source: Tensor | None,
    noise_scale: Tensor | None,
    known: Tensor | None,
    known_noise: Tensor | None,
    known_coefficients: Tensor | None,
    mask: Tensor | None,
    has_known: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `bridle_kernels.guide_step_blend`. All tensors on one GPU; strided ones are made contiguous."""
    latents = latents.contiguous()
    samples, channels, height, width = latents.shape
    out, model_output = torch.empty_like(latents), torch.empty_like(latents)

    given = {
        "eps": eps,
        "term_start": term_start,
        "term_row": term_row,
        "term_coefficient": term_coefficient,
        "term_weight": term_weight,
        "term_top": term_top,
        "term_left": term_left,
        "weights": weights,
        "latents": latents,
        "history": history,
        "coefficients": coefficients,
        "noise": noise,
        "noise_source": noise_source,
        "noise_scale": noise_scale,
        "known": known,
        "known_noise": known_noise,
        "known_coefficients": known_coefficients,
        "mask": mask,
        "has_known": has_known,
    }
    ready = {name: None if tensor is None else tensor.contiguous() for name, tensor in given.items()}
    sizes = {"height": height, "width": width, "window_height": eps.shape[2], "window_width": eps.shape[3]}
    outputs = {"out": out, "model_output": model_output}
    constants = {
        "HISTORY": 0 if history is None else history.shape[1],
        "NOISE": noise is not None,
        "DRAWS": 0 if noise_scale is None else noise_scale.shape[1],
        "WEIGHTS": weights is not None,
        "KNOWN": known is not None,
        "BLOCK": BLOCK,
    }
    grid = (samples, triton.cdiv(channels * height * width, BLOCK))
    # The definition rounds after every multiplication and every addition.
    launch(_kernel, grid, {**ready, **outputs, **sizes, "channels": channels}, constants, fusion=False)
    return out, model_output


_FLOATS = ("term_coefficient", "latents", "coefficients", "out", "model_output")
_INTEGERS = ("term_start", "term_row", "term_weight", "term_top", "term_left")
_OPTIONAL = {
    "NOISE": {"noise": "*fp32"},
    "DRAWS": {"noise_source": "*i64", "noise_scale": "*fp32"},
    "WEIGHTS": {"weights": "*fp32"},
    "KNOWN": {
        **dict.fromkeys(("known", "known_noise", "known_coefficients", "mask"), "*fp32"),
        "has_known": "*i32",
    },
}
"""What each feature reads."""


def variants() -> list[Variant]:
    """A step of a solver without memory, of one with one and with two slots of it, of one with noise of either source, and
    everything."""
    plain = [_variant(dtype, history, ()) for dtype in DTYPES.values() for history in (0, 1, 2)]
    noisy = [_variant(dtype, 0, (source,)) for dtype in DTYPES.values() for source in ("NOISE", "DRAWS")]
    return [*plain, *noisy, *(_variant(dtype, 4, tuple(_OPTIONAL)) for dtype in DTYPES.values())]


def _variant(dtype: str, history: int, features: tuple[str, ...]) -> Variant:
    read: dict[str, str] = {"history": "*fp32"} if history else {}
    absent: dict[str, None] = {} if history else {"history": None}
    for feature, operands in _OPTIONAL.items():
        if feature in features:
            read |= operands
        else:
            absent |= dict.fromkeys(operands)
    types: dict[str, str | tuple[str, ...]] = {
        "eps": f"*{dtype}",
        **dict.fromkeys(_FLOATS, "*fp32"),
        **dict.fromkeys(_INTEGERS, "*i32"),
        **read,
        **dict.fromkeys(("height", "width", "window_height", "window_width", "channels"), "i32"),
    }
    flags = {feature: feature in features for feature in _OPTIONAL}
    numbers = {"HISTORY": history, "DRAWS": int("DRAWS" in features), "BLOCK": BLOCK}
    constants: dict[str, int | bool | None] = {**flags, **numbers, **absent}
    name = "_".join(("guide_step_blend", str(history), *(f.lower() for f in features), dtype))
    return Variant(name, _kernel, types, constants, fusion=False)
