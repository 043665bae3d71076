"""Nearest neighbour by whole factors on a GPU."""

import triton
import triton.language as tl
from torch import Tensor

from bridle_kernels.triton_launch import launch
from bridle_kernels.triton_variant import DTYPES, Variant

BLOCK = 512


@triton.jit
def _kernel(x, out, height, width, channels, tall, wide, BLOCK: tl.constexpr):
    r = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    count = tl.cast(height, tl.int64) * tall * width * wide * channels
    valid = i < count
    pixel = i // channels
    line = pixel // (width * wide) // tall
    column = pixel % (width * wide) // wide
    at = ((r * height + line) * width + column) * channels + i % channels
    tl.store(out + r * count + i, tl.load(x + at, mask=valid, other=0.0), mask=valid)


def serves(x: Tensor, size: tuple[int, int]) -> bool:
    """Whether `size` is whole multiples of the size of x [R, C, h, w]."""
    return size[0] % x.shape[2] == 0 and size[1] % x.shape[3] == 0


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[R, *size, C] of x [R, h, w, C], contiguous, where `serves`."""
    rows, height, width, channels = x.shape
    out = x.new_empty(rows, *size, channels)
    sizes = {"height": height, "width": width, "channels": channels}
    factors = {"tall": size[0] // height, "wide": size[1] // width}
    grid = (triton.cdiv(size[0] * size[1] * channels, BLOCK), rows)
    launch(_kernel, grid, {"x": x, "out": out, **sizes, **factors}, {"BLOCK": BLOCK})
    return out


def variants() -> list[Variant]:
    """Every dtype."""
    return [
        Variant(
            f"upsample_{dtype}",
            _kernel,
            {
                **dict.fromkeys(("x", "out"), f"*{dtype}"),
                **dict.fromkeys(("height", "width", "channels", "tall", "wide"), "i32"),
            },
            {"BLOCK": BLOCK},
            multiples=("channels",),
        )
        for dtype in DTYPES.values()
    ]
