"""Residuals on a GPU: all of them in one pass over the image, summed in float32 and rounded once."""

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from bridle_kernels.residual_add.reference import ResidualTerm, check_term
from bridle_kernels.triton_launch import launch
from bridle_kernels.triton_variant import DTYPES, Variant

BLOCK = 512


MOST = 4
"""Residuals at one point that a bundle has kernels for."""


@triton.jit(do_not_specialize=["masked"], do_not_specialize_on_alignment=["scales", "masks"])
def _kernel(
    x, out, values, sources, scales, masks, value_strides, scale_strides, mask_strides, rows, height, width, channels,
    out_stride, masked, TERMS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """masked: bit t says whether term t has a mask; an argument, so that one compiled kernel serves all."""
    r = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    count = tl.cast(height, tl.int64) * width * channels
    valid = i < count
    c = i % channels
    column = i // channels % width
    line = i // channels // width
    total = tl.load(x + r * count + i, mask=valid, other=0.0).to(tl.float32)
    for t in tl.static_range(TERMS):
        source = tl.load(sources + t * rows + r).to(tl.int64)
        if source >= 0:
            at = source * value_strides[4 * t] + c * value_strides[4 * t + 1]
            at += line * value_strides[4 * t + 2] + column * value_strides[4 * t + 3]
            factor = tl.load(scales[t] + source * scale_strides[t])
            value = tl.load(values[t] + at, mask=valid, other=0.0).to(tl.float32) * factor
            if (masked >> t) & 1:
                cell = source * mask_strides[3 * t] + line * mask_strides[3 * t + 1] + column * mask_strides[3 * t + 2]
                value *= tl.load(masks[t] + cell, mask=valid, other=0.0)
            total += value
    pixel = r * height * width + i // channels
    tl.store(out + pixel * out_stride + c, total.to(out.dtype.element_ty), mask=valid)


def serves(residuals: Sequence[ResidualTerm]) -> bool:
    """Whether each residual names a row at most once."""
    return all(term.rows is None or len(set(term.rows)) == len(term.rows) for term in residuals)


def residual_add(x: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor:
    """See `bridle_kernels.residual_add`. x: [R, h, w, C], contiguous, is written over and returned. Raises ValueError."""
    if residuals:
        _add(x, residuals, x)
    return x


def concatenated(x: Tensor, skip: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor:
    """[R, h, w, C + C']: x, and skip with its residuals, which are written where the concatenation has them.

    x: [R, h, w, C], skip: [R, h, w, C'], contiguous. Raises ValueError.
    """
    channels = x.shape[3]
    out = x.new_empty((*x.shape[:3], channels + skip.shape[3]))
    out[..., :channels].copy_(x)
    _add(skip, residuals, out[..., channels:])
    return out


def _add(x: Tensor, residuals: Sequence[ResidualTerm], out: Tensor) -> None:
    """out: x itself, whose elements are each read by the thread that writes them, or columns of a wider tensor."""
    rows, height, width, channels = x.shape
    for term in residuals:
        check_term((rows, channels, height, width), term)
    values = [term.values.to(x.device) for term in residuals]
    scales = [term.scale.to(x.device, torch.float32) for term in residuals]
    # An absent mask is a pointer that nothing reads.
    masks = [None if term.mask is None else term.mask.to(x.device, torch.float32) for term in residuals]
    given = {
        "x": x,
        "out": out,
        "values": tuple(values),
        "sources": _sources(tuple(term.rows for term in residuals), rows, x.device),
        "scales": tuple(scales),
        "masks": tuple(scale if mask is None else mask for scale, mask in zip(scales, masks, strict=True)),
        "value_strides": tuple(n for v in values for n in _strides(v, (0, 1, 2, 3))),
        "scale_strides": tuple(n for s in scales for n in _strides(s, (0,))),
        "mask_strides": tuple(n for m in masks for n in ((0, 0, 0) if m is None else _strides(m, (0, 2, 3)))),
        "rows": rows,
        "height": height,
        "width": width,
        "channels": channels,
        "out_stride": out.stride(2),
        "masked": sum(1 << t for t, mask in enumerate(masks) if mask is not None),
    }
    constants = {"TERMS": len(values), "BLOCK": BLOCK}
    launch(_kernel, (triton.cdiv(height * width * channels, BLOCK), rows), given, constants)


def _strides(tensor: Tensor, dims: Sequence[int]) -> list[int]:
    """0 where a dimension has one element, which serves all."""
    return [0 if tensor.shape[dim] == 1 else tensor.stride(dim) for dim in dims]


@cache
def _sources(named: tuple[tuple[int, ...] | None, ...], rows: int, device: torch.device) -> Tensor:
    """[T, R] int32: which row of each residual each row of the batch takes, -1 for none.

    Copied to the GPU once and kept for good: a captured graph reads it by its address.
    """
    table = [
        list(range(rows)) if one is None else [one.index(row) if row in one else -1 for row in range(rows)]
        for one in named
    ]
    return torch.tensor(table, dtype=torch.int32, device=device)


def variants() -> list[Variant]:
    """Of 1 to `MOST` residuals, whichever of them have masks."""
    return [_variant(dtype, terms) for dtype in DTYPES.values() for terms in range(1, MOST + 1)]


def _variant(dtype: str, terms: int) -> Variant:
    types: dict[str, str | tuple[str, ...]] = {
        **dict.fromkeys(("x", "out"), f"*{dtype}"),
        "values": (f"*{dtype}",) * terms,
        **dict.fromkeys(("scales", "masks"), ("*fp32",) * terms),
        "sources": "*i32",
        "value_strides": ("i32",) * 4 * terms,
        "scale_strides": ("i32",) * terms,
        "mask_strides": ("i32",) * 3 * terms,
        **dict.fromkeys(("rows", "height", "width", "channels", "out_stride", "masked"), "i32"),
    }
    name, constants = f"residual_add_{terms}_{dtype}", {"TERMS": terms, "BLOCK": BLOCK}
    # A scale is a column of a table of all points; an absent mask is such a column too.
    anywhere = ("scales", "masks")
    return Variant(name, _kernel, types, constants, multiples=("channels", "out_stride"), unaligned=anywhere)
