"""Sizes of tiles and the compiler's options of the GPU kernels, by head dimension, dtype and number of keys.

Chosen so that every one fits the registers and the shared memory of sm_80 to sm_100.
"""

from dataclasses import dataclass

import torch

WIDEST = 256
"""Largest head dimension of the fused kernel."""
ONE_TILE = 128
"""Contexts of up to this many keys, such as 77 tokens of text, are one tile where that is sound and spills nowhere."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """low, high: the two blocks of a head dimension, high 0 for none. queries, keys: of a tile."""

    low: int
    high: int
    queries: int
    keys: int
    warps: int
    stages: int


def split(dim: int) -> tuple[int, int]:
    """Two blocks that hold `dim` channels: powers of two of at least 16, the second 0 if one is enough."""
    low = max(16, 1 << (dim.bit_length() - 1))
    rest = dim - low
    return low, 0 if rest <= 0 else power(rest)


def power(count: int) -> int:
    """The smallest power of two that is at least 16 and at least `count`."""
    return max(16, 1 << (count - 1).bit_length())


def tiles(dim: int, dtype: torch.dtype, keys: int, biased: bool) -> Tiles:
    """Of the forward kernel. They do not depend on the number of queries, nor, beyond `ONE_TILE`, of keys: few kernels serve
    all. dtype: what products are computed in. biased: loads of a bias need registers.
    """
    low, high = split(dim)
    if high and dtype != torch.float32:
        return Tiles(low, high, *_of_two_blocks(dim, keys, biased))
    return Tiles(low, high, *_largest(dim, dtype, keys, biased))


def is_sound(low_high: tuple[int, int], queries: int, warps: int) -> bool:
    """Whether tiles of products in half precision compute what they should.

    Two blocks of a head dimension must not be products of Hopper's warp groups, which want 64 queries and 4 warps: as
    Triton 3.6 compiles them for sm_90, with one stage results are wrong, differ between runs or end in an illegal access,
    with more now and then (H200, 331cabf). The same kernel without warp groups is right.
    """
    return low_high[1] == 0 or queries < 64 or warps < 4


def bucket(dim: int, keys: int, biased: bool) -> str:
    """Name of all shapes that `tiles` does not tell apart."""
    return f"dim={dim} keys={'few' if keys <= ONE_TILE else 'many'} bias={'yes' if biased else 'no'}"


def _of_two_blocks(dim: int, keys: int, biased: bool) -> tuple[int, int, int, int]:
    """Queries, keys, warps and stages: sound ones that spill nowhere."""
    few = keys <= ONE_TILE
    stages = 1 if biased or few else 2
    if dim > 128:
        # Wider second blocks than that of 160 = 128 + 32 are not known to fit.
        return 16, ONE_TILE if few and not biased and dim <= 160 else 64, 4, stages
    return 32, 32 if biased or (few and dim > 64) else 64, 4, stages


def _largest(dim: int, dtype: torch.dtype, keys: int, biased: bool) -> tuple[int, int, int, int]:
    """Queries, keys, warps and stages of the largest tiles that spill nowhere."""
    if dtype == torch.float32:
        if dim > 128:
            return 16, 16, 4, 1
        return 32 if biased or dim <= 80 else 16, 32, 4 if biased and dim <= 64 else 8, 1
    if biased:
        return 64, 32, 8 if 96 < dim <= 128 else 4, 1
    if dim > 128:
        return 64, 32, 4, 1 if keys <= ONE_TILE else 2
    if keys <= ONE_TILE:
        return 64, ONE_TILE, 4 if dim <= 40 else 8, 1
    return 128, 64 if dim <= 96 else 32, 8, 3 if dim <= 40 else 2


def column_tiles(dim: int, dtype: torch.dtype) -> Tiles:
    """Of the kernels that read columns: `keys` counts columns. dtype: what products are computed in."""
    low, high = split(dim)
    if dtype == torch.float32:
        return Tiles(low, high, 16, 16, 8, 1)
    return Tiles(low, high, 16 if dim > 96 else 32, 32, 4, 1)


def gradient_tiles(dim: int, dtype: torch.dtype) -> Tiles:
    """Of the kernels of gradients, sound as `is_sound` says. dtype: what products are computed in."""
    low, high = split(dim)
    if dtype == torch.float32:
        return Tiles(low, high, 16, 16, 8, 1)
    return Tiles(low, high, 64 if high == 0 and dim <= 32 else 32, 32, 4 if dim <= 64 else 8, 1)
