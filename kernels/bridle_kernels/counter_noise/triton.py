"""Counter-based noise inside a kernel: only sums and products that IEEE 754 defines, a logarithm, and a square root."""

import triton
import triton.language as tl

TURN = tl.constexpr(6.283185307179586)
UNIT = tl.constexpr(2.0**-24)


@triton.jit
def standard_normal(seed, step, draw, element):
    """float32, one for each element; see `bridle_kernels.counter_noise`. seed: int64, its 64 bits."""
    element = element.to(tl.uint32)
    zero = tl.zeros_like(element)
    counter = (element, (zero + draw).to(tl.uint32), (zero + step).to(tl.uint32), zero)
    first, second, _, _ = tl.philox(seed, *counter)
    u = ((first >> 8) + 1).to(tl.float32) * UNIT
    turns = tl.abs((second >> 8).to(tl.float32) * UNIT - 0.5) - 0.25
    return tl.sqrt_rn(-2.0 * tl.log(u)) * _sin(turns * TURN)


@triton.jit
def _sin(x):
    # Taylor's series: the next term is below 7e-10 on [-pi/2, pi/2]. The library's sine would put its reduction of large
    # angles, which are none here, on the stack.
    y = x * x
    s = 1.6059043836821613e-10 * y - 2.505210838544172e-08
    s = s * y + 2.7557319223985893e-06
    s = s * y - 0.0001984126984126984
    s = s * y + 0.008333333333333333
    s = s * y - 0.16666666666666666
    return x + x * y * s
