"""What follows the product of a GEGLU layer on a GPU."""

import triton
import triton.language as tl
from torch import Tensor

from bridle_kernels.triton_launch import launch
from bridle_kernels.triton_variant import DTYPES, Variant

BLOCK = 1024


@triton.jit
def _kernel(product, out, channels, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = i < count
    at = product + (i // channels) * (2 * channels) + i % channels
    value = tl.load(at, mask=valid, other=0.0).to(tl.float32)
    gate = tl.load(at + channels, mask=valid, other=0.0).to(tl.float32)
    value *= 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + i, value.to(out.dtype.element_ty), mask=valid)


def gated(product: Tensor) -> Tensor:
    """[M, C]: a * gelu(g) of a product [M, 2*C] = [a | g], contiguous. gelu is exact."""
    rows, channels = product.shape[0], product.shape[1] // 2
    out = product.new_empty(rows, channels)
    given = {"product": product, "out": out, "channels": channels, "count": out.numel()}
    launch(_kernel, (triton.cdiv(out.numel(), BLOCK),), given, {"BLOCK": BLOCK})
    return out


def variants() -> list[Variant]:
    """Every dtype."""
    return [
        Variant(
            f"geglu_{dtype}",
            _kernel,
            {"product": f"*{dtype}", "out": f"*{dtype}", "channels": "i32", "count": "i64"},
            {"BLOCK": BLOCK},
            multiples=("channels",),
        )
        for dtype in DTYPES.values()
    ]
