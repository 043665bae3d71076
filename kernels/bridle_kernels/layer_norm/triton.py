"""Layer norm on a GPU: a program takes some tokens whole, two passes over registers, float32."""

import triton
import triton.language as tl
from torch import Tensor

from bridle_kernels.triton_launch import launch
from bridle_kernels.triton_variant import DTYPES, Variant

ELEMENTS = 2048
"""Of a tile, where one token is not more."""


@triton.jit
def _kernel(x, weight, bias, out, tokens, channels, eps, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    c = tl.arange(0, BLOCK)
    present = c < channels
    at = token[:, None] * channels + c[None, :]
    valid = (token < tokens)[:, None] & present[None, :]
    value = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
    value = tl.where(valid, value - (tl.sum(value, 1) / channels)[:, None], 0.0)
    value = value / tl.sqrt_rn(tl.sum(value * value, 1) / channels + eps)[:, None]
    value = value * tl.load(weight + c, mask=present, other=0.0).to(tl.float32)[None, :]
    value += tl.load(bias + c, mask=present, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm of x [M, C], contiguous; weight, bias [C]."""
    out = x.new_empty(x.shape)
    block = triton.next_power_of_2(x.shape[1])
    tile = _tile(block)
    tensors = {"x": x, "weight": weight, "bias": bias, "out": out}
    given = {**tensors, "tokens": x.shape[0], "channels": x.shape[1], "eps": eps}
    launch(_kernel, (triton.cdiv(x.shape[0], tile["TOKENS"]),), given, tile, num_warps=_warps(block))
    return out


def _tile(block: int) -> dict[str, int]:
    return {"TOKENS": max(1, ELEMENTS // block), "BLOCK": block}


def _warps(block: int) -> int:
    return min(8, max(4, block // 256))


def variants() -> list[Variant]:
    """The widths of the published networks."""
    found = []
    for dtype in DTYPES.values():
        tensors = dict.fromkeys(("x", "weight", "bias", "out"), f"*{dtype}")
        types: dict[str, str | tuple[str, ...]] = {**tensors, "tokens": "i32", "channels": "i32", "eps": "fp32"}
        for block in (512, 1024, 2048):
            name, warps = f"layer_norm_{block}_{dtype}", _warps(block)
            found.append(Variant(name, _kernel, types, _tile(block), warps, multiples=("channels",)))
    return found
