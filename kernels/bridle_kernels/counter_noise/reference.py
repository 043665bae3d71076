"""Counter-based noise in plain PyTorch: the definition. Words are int64 values from 0 to 2^32 - 1."""

import math

import torch
from torch import Tensor

MAX_ELEMENTS = 2**32
"""Of one draw: the element is one word of the counter."""
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BITS = 24


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four random words for each counter. counter: words that are broadcast. key: low and high word."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high_0, low_0 = _product(c0, _MULTIPLIERS[0])
        high_1, low_1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word. The product may pass 2^63: its bits are right all the same, and the mask drops the sign's."""
    product = word * multiplier
    return (product >> 32) & _WORD, product & _WORD


def standard_normal(
    seed: int, step: int, draw: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Noise of one image on the CPU; its elements are counted in C order.

    seed: 64 bits, also as a negative number. step, draw: 0 to 2^32 - 1. dtype: in which the transform is computed.
    Raises ValueError for more than `MAX_ELEMENTS`.
    """
    first, second, *_ = _words(seed, step, draw, _elements(shape))
    return box_muller(first, second, dtype)


def uniform(seed: int, step: int, draw: int, shape: tuple[int, ...]) -> Tensor:
    """float32 in [0, 1) on the CPU, of 24 bits; see `standard_normal`."""
    return (_words(seed, step, draw, _elements(shape))[0] >> (32 - _BITS)).float() * 2.0**-_BITS


def choices(seed: int, step: Tensor, draw: Tensor, element: Tensor, options: int) -> Tensor:
    """int64 from 0 to options - 1, as likely as each other to 2^-32, for the three, int64 and broadcast, of each counter."""
    if not 0 < options < 2**31:
        raise ValueError(f"counter_noise: options is {options}, wants 1 to 2^31 - 1")
    return (_words(seed, step, draw, element)[0] * options) >> 32


def _elements(shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    if count > MAX_ELEMENTS:
        raise ValueError(f"counter_noise: shape {list(shape)} has {count} elements, wants at most {MAX_ELEMENTS}")
    return torch.arange(count).reshape(shape)


def _words(seed: int, step: int | Tensor, draw: int | Tensor, element: Tensor) -> tuple[Tensor, ...]:
    """Four words for each counter."""
    counter = (element, torch.as_tensor(draw), torch.as_tensor(step), torch.tensor(0))
    return philox4x32(counter, (seed & _WORD, (seed >> 32) & _WORD))


def box_muller(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers from two random words each."""
    u = ((first >> (32 - _BITS)) + 1).to(dtype) * 2.0**-_BITS
    v = (second >> (32 - _BITS)).to(dtype) * 2.0**-_BITS
    # cos(2 pi v), from an angle that is small where the cosine is: no digits are lost there.
    turns = (v - 0.5).abs() - 0.25
    return torch.sqrt(-2.0 * torch.log(u)) * torch.sin(2.0 * math.pi * turns)
