"""The GPU kernel. One program per sample and block of pixels; float32 arithmetic in the definition's order, no atomics.

It is compiled once for each dtype of model outputs: which operands there are, how many draws and slots of history, and all
sizes are numbers that it reads, so that a solver, a size or a feature that nobody asked for before needs no compiler.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bridle_kernels.counter_noise.triton import standard_normal
from bridle_kernels.triton_launch import launch
from bridle_kernels.triton_variant import DTYPES, Variant

BLOCK = 256
WEIGHTS, NOISE, KNOWN = (tl.constexpr(1 << bit) for bit in range(3))
"""Bits of `fields`: which operands are there. Of another, some other tensor stands in its place and is not read."""
NUMBERS = ("height", "width", "window_height", "window_width", "channels", "slots", "draws", "fields")
"""Arguments that are no tensors. slots: of history. draws: of each sample."""


@triton.jit
def _add(total, pointers, coefficient, valid):
    if coefficient != 0.0:
        total += tl.load(pointers, mask=valid, other=0.0) * coefficient
    return total


# A number that is 1, or a multiple of 16, shall not be another kernel.
@triton.jit(do_not_specialize=NUMBERS)
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
    slots,
    draws,
    fields,
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
        if fields & WEIGHTS:
            index = tl.load(term_weight + t).to(tl.int64)
            if index >= 0:
                cells = weights + index * window_height * window_width + cell
                value = value * tl.load(cells, mask=covered, other=0.0)
        m = tl.where(covered, m + value, m)
    tl.store(model_output + here, m, mask=valid)
    # A coefficient of 0 skips its term: 0 * Inf would be NaN.
    own = coefficients + p * (3 + slots)
    total = _add(tl.zeros([BLOCK], tl.float32), latents + here, tl.load(own), valid)
    b = tl.load(own + 1)
    if b != 0.0:
        total += m * b
    amount = tl.load(own + 2)
    if amount != 0.0 and ((fields & NOISE) != 0 or draws > 0):
        z = tl.zeros([BLOCK], tl.float32)
        if fields & NOISE:
            z = tl.load(noise + here, mask=valid, other=0.0)
        for draw in range(draws):
            scale = tl.load(noise_scale + p * draws + draw)
            if scale != 0.0:
                seed, step = tl.load(noise_source + 2 * p), tl.load(noise_source + 2 * p + 1)
                z += standard_normal(seed, step, draw, i) * scale
        total += z * amount
    for slot in range(slots):
        total = _add(total, history + (p * slots + slot) * count + i, tl.load(own + 3 + slot), valid)
    if fields & KNOWN:
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
    """See `bridle_kernels.guide_step_blend`. All tensors on one GPU; strided and unaligned ones are copied."""
    latents = _ready(latents)
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
    absent = {"noise_source": latents.new_empty(2, dtype=torch.int64), "has_known": term_start}
    tensors = {name: _ready(absent.get(name, latents) if t is None else t) for name, t in given.items()}
    given_bits = ((WEIGHTS, weights), (NOISE, noise), (KNOWN, known))
    numbers = {
        "height": height,
        "width": width,
        "window_height": eps.shape[2],
        "window_width": eps.shape[3],
        "channels": channels,
        "slots": 0 if history is None else history.shape[1],
        "draws": 0 if noise_scale is None else noise_scale.shape[1],
        "fields": sum(bit.value for bit, operand in given_bits if operand is not None),
    }
    outputs = {"out": out, "model_output": model_output}
    grid = (samples, triton.cdiv(channels * height * width, BLOCK))
    # The definition rounds after every multiplication and every addition.
    launch(_kernel, grid, {**tensors, **outputs, **numbers}, {"BLOCK": BLOCK}, fusion=False)
    return out, model_output


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and at a multiple of 16 bytes, as the kernel is compiled for; a row of a table may be at neither."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


_FLOATS = (
    *("term_coefficient", "weights", "latents", "history", "coefficients", "noise", "noise_scale"),
    *("known", "known_noise", "known_coefficients", "mask", "out", "model_output"),
)
_INTEGERS = ("term_start", "term_row", "term_weight", "term_top", "term_left", "has_known")


def variants() -> list[Variant]:
    """One of each dtype, which serves every step."""
    return [_variant(dtype) for dtype in DTYPES.values()]


def _variant(dtype: str) -> Variant:
    types: dict[str, str | tuple[str, ...]] = {
        "eps": f"*{dtype}",
        **dict.fromkeys(_FLOATS, "*fp32"),
        **dict.fromkeys(_INTEGERS, "*i32"),
        "noise_source": "*i64",
        **dict.fromkeys(NUMBERS, "i32"),
    }
    return Variant(f"guide_step_blend_{dtype}", _kernel, types, {"BLOCK": BLOCK}, fusion=False)
