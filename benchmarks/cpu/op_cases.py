"""Ops of SD1.5 at 512x512 with two rows, ours and PyTorch's, with the work that each does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.attention import Piece, Segment, native
from bridle_kernels.guide_step_blend import guide_step_blend

ROWS = 2
LEVELS = ((64, 320), (32, 640), (16, 1280), (8, 1280))
"""(side, channels)."""


@dataclass(frozen=True)
class Case:
    """ours, theirs: the same op, [.., ..] out. flop or bytes: what it does, bytes counted once for each tensor."""

    op: str
    shape: str
    dtype: torch.dtype
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    flop: float = 0.0
    bytes: float = 0.0


def name_of(dtype: torch.dtype) -> str:
    """ "float32", "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def attention_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Self- and cross-attention of every level."""
    for side, channels in LEVELS:
        for name, keys in (("self", side * side), ("cross", 77)):
            yield _attention_case(pool, dtype, name, side * side, keys, channels // 8)


def _attention_case(pool: "_core.ThreadPool", dtype: torch.dtype, name: str, queries: int, keys: int, dim: int) -> Case:
    q, k, v = (torch.randn(ROWS, n, 8, dim).to(dtype) for n in (queries, keys, keys))
    segment = Segment((Piece(k, v),))

    def theirs() -> Tensor:
        heads = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return heads.transpose(1, 2).flatten(2)

    return Case(
        f"{name}-attention",
        f"{ROWS}x{queries}x8x{dim}, {keys} keys",
        dtype,
        lambda: native.attention(q, [segment], pool=pool),
        theirs,
        flop=4.0 * ROWS * 8 * queries * keys * dim,
    )


def linear_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Projections and both layers of the feed-forward network of every level."""
    for side, width in LEVELS[:3]:
        for inputs, outputs in ((width, width), (width, 8 * width), (4 * width, width)):
            yield _linear_case(pool, dtype, ROWS * side * side, inputs, outputs)


def _linear_case(pool: "_core.ThreadPool", dtype: torch.dtype, m: int, inputs: int, outputs: int) -> Case:
    x, weight = torch.randn(m, inputs).to(dtype), (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
    packed = _core.PackedWeights(weight, [inputs], name_of(dtype))
    out = torch.empty(m, outputs, dtype=dtype)

    def ours() -> Tensor:
        _core.linear(pool, packed, x, out)
        return out

    flop = 2.0 * m * inputs * outputs
    return Case("linear", f"{m}x{inputs} -> {outputs}", dtype, ours, lambda: F.linear(x, weight), flop=flop)


def convolution_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """3x3 convolutions of every level."""
    for side, width in LEVELS:
        yield _convolution_case(pool, dtype, side, width)


def _convolution_case(pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int) -> Case:
    x = _image(side, width, dtype)
    weight = (torch.randn(width, width, 3, 3) / (9 * width) ** 0.5).to(dtype)
    last = weight.contiguous(memory_format=torch.channels_last)
    packed = _core.PackedWeights(weight.flatten(2).transpose(1, 2), [width] * 9, name_of(dtype))
    out = torch.empty(ROWS * side * side, width, dtype=dtype)

    def ours() -> Tensor:
        _core.conv2d(pool, packed, [x.permute(0, 2, 3, 1)], out, kernel=[3, 3])
        return out.view(ROWS, side, side, -1).permute(0, 3, 1, 2)

    flop = 2.0 * ROWS * side * side * 9 * width * width
    shape = f"{ROWS}x{side}x{side}x{width}"
    return Case("conv2d 3x3", shape, dtype, ours, lambda: F.conv2d(x, last, padding=1), flop=flop)


def group_norm_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """With SiLU, of every level."""
    for side, width in LEVELS:
        yield _group_norm_case(pool, dtype, side, width)


def _group_norm_case(pool: "_core.ThreadPool", dtype: torch.dtype, side: int, width: int) -> Case:
    x, weight, bias = _image(side, width, dtype), torch.randn(width), torch.randn(width)
    tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
    out = torch.empty_like(tokens)
    own_weight, own_bias = weight.to(dtype), bias.to(dtype)

    def ours() -> Tensor:
        _core.group_norm(pool, [tokens], out, weight, bias, groups=32, eps=1e-5, activation="silu")
        return out.view(ROWS, side, side, -1).permute(0, 3, 1, 2)

    def theirs() -> Tensor:
        return F.silu(F.group_norm(x, 32, own_weight, own_bias, 1e-5))

    return Case("group norm", f"{ROWS}x{side}x{side}x{width}", dtype, ours, theirs, bytes=2.0 * _bytes(x))


def layer_norm_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Of every level."""
    for side, width in LEVELS:
        yield _layer_norm_case(pool, dtype, ROWS * side * side, width)


def _layer_norm_case(pool: "_core.ThreadPool", dtype: torch.dtype, m: int, width: int) -> Case:
    x, weight, bias = torch.randn(m, width).to(dtype), torch.randn(width), torch.randn(width)
    out, own_weight, own_bias = torch.empty_like(x), weight.to(dtype), bias.to(dtype)

    def ours() -> Tensor:
        _core.layer_norm(pool, x, out, weight, bias, eps=1e-5)
        return out

    def theirs() -> Tensor:
        return F.layer_norm(x, (width,), own_weight, own_bias, 1e-5)

    return Case("layer norm", f"{m}x{width}", dtype, ours, theirs, bytes=2.0 * _bytes(x))


def residual_add_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """One residual of a ControlNet for all rows, in place, at every level."""
    for side, width in LEVELS:
        yield _residual_add_case(pool, dtype, side * side, width)


def _residual_add_case(pool: "_core.ThreadPool", dtype: torch.dtype, positions: int, width: int) -> Case:
    x, values = (torch.randn(ROWS, positions, width).to(dtype) for _ in range(2))
    mine, scale = x.clone(), 0.5
    terms = [{"values": values, "rows": list(range(ROWS)), "scale": [scale] * ROWS, "mask": None}]

    def ours() -> Tensor:
        _core.residual_add(pool, mine, terms)
        return mine

    shape = f"{ROWS}x{positions}x{width}"
    return Case("residual add", shape, dtype, ours, lambda: x.add_(values, alpha=scale), bytes=3.0 * _bytes(x))


def guide_step_blend_cases(pool: "_core.ThreadPool", dtype: torch.dtype) -> Iterator[Case]:
    """Guidance and a step without history, for one and four images of 512x512."""
    for images in (1, 4):
        yield _guide_step_blend_case(dtype, images)


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
        bytes=float(_bytes(eps) + 3 * _bytes(latents)),
    )


def _image(side: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(ROWS, width, side, side).to(dtype).contiguous(memory_format=torch.channels_last)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


REGISTRY = (
    attention_cases,
    linear_cases,
    convolution_cases,
    group_norm_cases,
    layer_norm_cases,
    residual_add_cases,
    guide_step_blend_cases,
)
