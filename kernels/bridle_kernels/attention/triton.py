"""One segment on a GPU: an online softmax over the keys of all pieces, one program per row, head and block of queries.

A head dimension is split into two blocks, LOW and HIGH, instead of being padded to a power of two: 40 = 32 + 16 (of which
8 are used), 80 = 64 + 16, 160 = 128 + 32. Sums are float32. Offsets are 64-bit; no atomics.
"""

import torch
import triton
import triton.language as tl

from bridle_kernels.attention.launch import tiles
from bridle_kernels.triton_variant import DTYPES, Variant

WEIGHT, GATE, LSE, FIRST, LAST, ADD = (tl.constexpr(1 << bit) for bit in range(6))
"""Bits of `fields`: which operands are there, whether it is the first segment, the last, and whether the result is added.

They are read once at the end of a program, so that one compiled kernel serves all."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tile(base, offset, index, stride, valid, channel, DIM: tl.constexpr, FLOAT32: tl.constexpr, UNIT: tl.constexpr):
    """[index, channel] of rows that lie `stride` apart, from an offset; 0 where not valid or past the head dimension.

    Offset and stride count UNIT elements: loads of 16 bytes have to know that rows begin at multiples of 8.
    """
    at = base + offset * UNIT + index.to(tl.int64)[:, None] * stride * UNIT + channel[None, :]
    read = tl.load(at, mask=valid[:, None] & (channel < DIM)[None, :], other=0.0)
    if FLOAT32:
        read = read.to(tl.float32)
    return read


@triton.jit(do_not_specialize=["rows", "queries", "heads", "fields"])
def _forward(
    q,
    ks,
    vs,
    q_rows,
    k_rows,
    v_rows,
    lengths,
    bias,
    weight,
    gate,
    total,
    out,
    lse,
    sizes,
    q_strides,
    k_strides,
    v_strides,
    bias_strides,
    rows,
    queries,
    heads,
    scale,
    fields,
    PIECES: tl.constexpr,
    DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    FLOAT32: tl.constexpr,
    UNIT: tl.constexpr,
    CAUSAL: tl.constexpr,
    BIAS: tl.constexpr,
):
    h = tl.program_id(1).to(tl.int64)
    r = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < queries
    low = tl.arange(0, LOW)
    q_at = tl.load(q_rows + r).to(tl.int64) * q_strides[0] + h * q_strides[2]
    q_low = tile(q, q_at, n, q_strides[1], inside, low, DIM, FLOAT32, UNIT)
    acc_low = tl.zeros([BLOCK_N, LOW], tl.float32)
    if HIGH:
        high = LOW + tl.arange(0, HIGH)
        q_high = tile(q, q_at, n, q_strides[1], inside, high, DIM, FLOAT32, UNIT)
        acc_high = tl.zeros([BLOCK_N, HIGH], tl.float32)
    most = tl.full([BLOCK_N], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK_N], tl.float32)
    k_row = tl.load(k_rows + r).to(tl.int64)
    v_row = tl.load(v_rows + r).to(tl.int64)
    first = 0
    for p in tl.static_range(PIECES):
        limit = tl.load(lengths + p * rows + r)
        if CAUSAL:
            limit = tl.minimum(limit, (tl.program_id(0) + 1) * BLOCK_N)
        k_at = k_row * k_strides[3 * p] + h * k_strides[3 * p + 2]
        v_at = v_row * v_strides[3 * p] + h * v_strides[3 * p + 2]
        for start in range(0, limit, BLOCK_L):
            key = start + tl.arange(0, BLOCK_L)
            seen = key < limit
            k_low = tile(ks[p], k_at, key, k_strides[3 * p + 1], seen, low, DIM, FLOAT32, UNIT)
            score = tl.dot(q_low, tl.trans(k_low), input_precision="ieee")
            if HIGH:
                k_high = tile(ks[p], k_at, key, k_strides[3 * p + 1], seen, high, DIM, FLOAT32, UNIT)
                score = tl.dot(q_high, tl.trans(k_high), score, input_precision="ieee")
            score = score * (scale * LOG2E)
            visible = inside[:, None] & seen[None, :]
            if BIAS:
                at = n.to(tl.int64)[:, None] * bias_strides[2] + (first + key)[None, :]
                at += r * bias_strides[0] + h * bias_strides[1]
                score += tl.load(bias + at, mask=visible, other=0.0).to(tl.float32) * LOG2E
            if CAUSAL:
                visible = visible & (key[None, :] <= n[:, None])
            score = tl.where(visible, score, float("-inf"))
            above = tl.maximum(most, tl.max(score, 1))
            # A query that has seen no key yet: the difference of two infinities would be NaN.
            base = tl.where(above == float("-inf"), 0.0, above)
            share = tl.exp2(score - base[:, None])
            shrink = tl.exp2(most - base)
            sums = sums * shrink + tl.sum(share, 1)
            v_low = tile(vs[p], v_at, key, v_strides[3 * p + 1], seen, low, DIM, FLOAT32, UNIT)
            share = share.to(v_low.dtype)
            acc_low = tl.dot(share, v_low, acc_low * shrink[:, None], input_precision="ieee")
            if HIGH:
                v_high = tile(vs[p], v_at, key, v_strides[3 * p + 1], seen, high, DIM, FLOAT32, UNIT)
                acc_high = tl.dot(share, v_high, acc_high * shrink[:, None], input_precision="ieee")
            most = above
        first += sizes[p]
    sums = tl.where(sums == 0.0, 1.0, sums)
    if fields & LSE:
        tl.store(lse + (r * heads + h) * queries + n, (most + tl.log2(sums)) * LN2, mask=inside)
    factor = tl.full([BLOCK_N], 1.0, tl.float32)
    if fields & WEIGHT:
        factor = tl.load(weight + r * queries + n, mask=inside, other=0.0)
    row = (r * queries + n.to(tl.int64))[:, None] * (heads * DIM) + h * DIM
    _deliver(acc_low, sums, factor, gate, r, total, out, row, inside, low, fields, DIM)
    if HIGH:
        _deliver(acc_high, sums, factor, gate, r, total, out, row, inside, high, fields, DIM)


@triton.jit
def _deliver(
    acc,
    sums,
    factor,
    gate,
    r,
    total,
    out,
    row,
    inside,
    channel,
    fields,
    DIM: tl.constexpr,
):
    """Writes one block of channels: into the running total, or, of the last segment, into the result."""
    at = row + channel[None, :]
    valid = inside[:, None] & (channel < DIM)[None, :]
    value = acc / sums[:, None]
    if fields & WEIGHT:
        # A weight of 0 contributes exactly nothing, NaN included.
        value = tl.where((factor == 0.0)[:, None], 0.0, value * factor[:, None])
    if (fields & FIRST) == 0:
        value += tl.load(total + at, mask=valid, other=0.0)
    if fields & LAST:
        if fields & GATE:
            opening = tl.load(gate + r)
            value = tl.where(opening == 0.0, 0.0, value * opening)
        if fields & ADD:
            value += tl.load(out + at, mask=valid, other=0.0).to(tl.float32)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)
    else:
        tl.store(total + at, value, mask=valid)


HEAD_DIMS = (8, 40, 64, 80, 96, 128, 160)
"""Of the published networks."""
_TEXT = 77
_TEXT_DIM = 64
_IMAGE = 4096


def variants() -> list[Variant]:
    """Attention of an image to itself, to text, and to text and tokens of an image; with a bias, which regions have; in
    float32, which some models want, and with the float32 values of shifted masses; and causal, as text encoders are."""
    found = []
    for dtype in DTYPES:
        for dim in HEAD_DIMS:
            found += [
                _variant("self", dim, dtype, _IMAGE, 1),
                _variant("text", dim, dtype, _TEXT, 1),
                _variant("pieces", dim, dtype, _TEXT + 4, 2),
                _variant("bias", dim, dtype, _TEXT, 1, BIAS=True),
            ]
            if dtype != torch.float32:
                found += [
                    _variant("float32", dim, dtype, _TEXT, 1, FLOAT32=True),
                    _variant("shifted", dim, dtype, _TEXT, 1, values=torch.float32, FLOAT32=True),
                ]
        found.append(_variant("causal", _TEXT_DIM, dtype, _TEXT, 1, CAUSAL=True))
    return found


def _variant(
    name: str,
    dim: int,
    dtype: torch.dtype,
    keys: int,
    pieces: int,
    values: torch.dtype | None = None,
    **on: bool,
) -> Variant:
    flags = {**dict.fromkeys(("CAUSAL", "BIAS", "FLOAT32"), False), **on}
    t = tiles(dim, torch.float32 if flags["FLOAT32"] else dtype, keys, flags["BIAS"])
    blocks = {"DIM": dim, "LOW": t.low, "HIGH": t.high, "BLOCK_N": t.queries, "BLOCK_L": t.keys}
    absent = {} if flags["BIAS"] else {"bias": None}
    types = {n: kind for n, kind in _types(DTYPES[dtype], DTYPES[values or dtype], pieces).items() if n not in absent}
    constants: dict[str, int | bool | None] = {"PIECES": pieces, **blocks, "UNIT": 8, **flags, **absent}
    return Variant(f"attention_{name}_{dim}_{DTYPES[dtype]}", _forward, types, constants, t.warps, t.stages)


def _types(dtype: str, values: str, pieces: int) -> dict[str, str | tuple[str, ...]]:
    return {
        **dict.fromkeys(("q", "out"), f"*{dtype}"),
        "ks": (f"*{dtype}",) * pieces,
        "vs": (f"*{values}",) * pieces,
        **dict.fromkeys(("q_rows", "k_rows", "v_rows", "lengths"), "*i32"),
        **dict.fromkeys(("bias", "weight", "gate", "total", "lse"), "*fp32"),
        **dict.fromkeys(("k_strides", "v_strides"), ("i32",) * (3 * pieces)),
        **{"sizes": ("i32",) * pieces, "q_strides": ("i32",) * 3, "bias_strides": ("i32",) * 3},
        **dict.fromkeys(("rows", "queries", "heads", "fields"), "i32"),
        "scale": "fp32",
    }
