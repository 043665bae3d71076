"""Gradients of one segment on a GPU: the map is built again from the log-sum-exp of the forward, tile by tile.

With P the map, dO the gradient of the output, dP a gradient that flows into columns of the map, and dL into its
log-sum-exp:

    G = dO V^T + dP        D_n = sum_j P_nj G_nj - dL_n        dS = P * (G - D)
    dQ = scale dS K        dK = scale dS^T Q        dV = P^T dO

A program of dQ goes over the keys twice, for D and for dS. Each element is written by one program, which adds up all rows
that read it in their order: no atomics, the same bits every time. In float32 the sums over tiles are compensated, so that
their error does not grow with the number of queries or keys.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from bridle_kernels.attention.launch import gradient_tiles
from bridle_kernels.attention.triton import tile
from bridle_kernels.triton_variant import DTYPES, Variant


@triton.jit
def _rows(
    base, offset, index, stride, valid, DIM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, FLOAT32: tl.constexpr,
    UNIT: tl.constexpr
):  # fmt: skip
    """The two blocks of channels of some rows; the first twice where one is enough."""
    low = tile(base, offset, index, stride, valid, tl.arange(0, LOW), DIM, FLOAT32, UNIT)
    high = low
    if HIGH:
        high = tile(base, offset, index, stride, valid, LOW + tl.arange(0, HIGH), DIM, FLOAT32, UNIT)
    return low, high


@triton.jit
def _products(a_low, a_high, b_low, b_high, HIGH: tl.constexpr):
    """[rows of a, rows of b]."""
    found = tl.dot(a_low, tl.trans(b_low), input_precision="ieee")
    if HIGH:
        found = tl.dot(a_high, tl.trans(b_high), found, input_precision="ieee")
    return found


@triton.jit
def _add_product(total, lost, a, b):
    """total + a b, and what rounding made of that sum, which the next one takes back (Kahan): only in float32.

    A dot that goes on from `total` is one running sum over all rows: over 4096 of them its error is about four times that
    of PyTorch, which sums in pieces. Half precision has rounded a and b, which is far more; there `lost` stays 0.
    """
    if a.dtype == tl.float32:
        term = tl.dot(a, b, input_precision="ieee") - lost
        grown = total + term
        # An infinite sum has lost nothing: inf - inf would make NaN of it in the next tile.
        lost = tl.where(tl.abs(grown) == float("inf"), 0.0, (grown - total) - term)
        total = grown
    else:
        total = tl.dot(a, b, total, input_precision="ieee")
    return total, lost


@triton.jit
def _map(
    score, level, n, key, place, inside, seen, r, h, bias, bias_strides, scale, CAUSAL: tl.constexpr, BIAS: tl.constexpr
):  # fmt: skip
    """Probabilities [n, key]. place: of the keys among those of all pieces. level: the log-sum-exp, -inf for no key."""
    visible = inside[:, None] & seen[None, :] & (level != float("-inf"))[:, None]
    if CAUSAL:
        visible = visible & (key[None, :] <= n[:, None])
    score = score * scale
    if BIAS:
        at = n.to(tl.int64)[:, None] * bias_strides[2] + place[None, :]
        at += r * bias_strides[0] + h * bias_strides[1]
        score += tl.load(bias + at, mask=visible, other=0.0).to(tl.float32)
    level = tl.where(level == float("-inf"), 0.0, level)
    return tl.where(visible, tl.exp(score - level[:, None]), 0.0)


@triton.jit
def _with_map_gradient(
    flowing, n, place, inside, seen, r, h, map_gradient, slots, map_strides, keys, MAPS: tl.constexpr
):  # fmt: skip
    """Adds what flows into the map [n, key]. slots: [R, keys], where a key's column is in the gradient, -1 for nowhere."""
    if MAPS:
        slot = tl.load(slots + r * keys + place, mask=seen, other=-1)
        at = r * map_strides[0] + h * map_strides[1] + n.to(tl.int64)[:, None] * map_strides[2] + slot[None, :]
        flowing += tl.load(map_gradient + at, mask=inside[:, None] & (slot >= 0)[None, :], other=0.0)
    return flowing


@triton.jit
def _put(out, row, acc_low, acc_high, valid, DIM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Stores rows that begin at `row`."""
    low = tl.arange(0, LOW)
    mask = valid[:, None] & (low < DIM)[None, :]
    tl.store(out + row[:, None] + low[None, :], acc_low.to(out.dtype.element_ty), mask=mask)
    if HIGH:
        high = LOW + tl.arange(0, HIGH)
        mask = valid[:, None] & (high < DIM)[None, :]
        tl.store(out + row[:, None] + high[None, :], acc_high.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "queries", "heads", "keys", "own"])
def _queries(
    q, ks, vs, gradient, source, k_rows, v_rows, lengths, bias, lse, lse_gradient, map_gradient, slots, delta, out, sizes,
    q_strides, k_strides, v_strides, gradient_strides, bias_strides, map_strides, rows, queries, heads, keys, own, scale,
    PIECES: tl.constexpr, DIM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr, FLOAT32: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr, BIAS: tl.constexpr,
    MAPS: tl.constexpr
):  # fmt: skip
    """D and dQ of one row of Q, head and block of queries. source: [R], which row of Q each output row reads; own: 1
    where that is its own."""
    h = tl.program_id(1).to(tl.int64)
    j = tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < queries
    at = j.to(tl.int64) * q_strides[0] + h * q_strides[2]
    q_low, q_high = _rows(q, at, n, q_strides[1], inside, DIM, LOW, HIGH, FLOAT32, UNIT)
    acc_low = tl.zeros([BLOCK_N, LOW], tl.float32)
    acc_high = tl.zeros([BLOCK_N, HIGH if HIGH else LOW], tl.float32)
    lost_low, lost_high = acc_low, acc_high
    for row in range(j * own, rows + (j + 1 - rows) * own):
        if tl.load(source + row) == j:
            r = row + 0 * h  # 64 bits, in the interpreter too
            at = r * gradient_strides[0] + h * gradient_strides[2]
            g_low, g_high = _rows(gradient, at, n, gradient_strides[1], inside, DIM, LOW, HIGH, FLOAT32, UNIT)
            here = (r * heads + h) * queries + n
            level = tl.load(lse + here, mask=inside, other=float("-inf"))
            k_row = tl.load(k_rows + r).to(tl.int64)
            v_row = tl.load(v_rows + r).to(tl.int64)
            balance = tl.zeros([BLOCK_N], tl.float32) - tl.load(lse_gradient + here, mask=inside, other=0.0)
            first = 0
            for p in tl.static_range(PIECES):
                limit = tl.load(lengths + p * rows + r)
                k_at = k_row * k_strides[3 * p] + h * k_strides[3 * p + 2]
                v_at = v_row * v_strides[3 * p] + h * v_strides[3 * p + 2]
                for start in range(0, limit, BLOCK_L):
                    key = start + tl.arange(0, BLOCK_L)
                    seen = key < limit
                    place = first + key
                    k_low, k_high = _rows(ks[p], k_at, key, k_strides[3 * p + 1], seen, DIM, LOW, HIGH, FLOAT32, UNIT)
                    score = _products(q_low, q_high, k_low, k_high, HIGH)
                    share = _map(
                        score, level, n, key, place, inside, seen, r, h, bias, bias_strides, scale, CAUSAL, BIAS
                    )
                    v_low, v_high = _rows(vs[p], v_at, key, v_strides[3 * p + 1], seen, DIM, LOW, HIGH, FLOAT32, UNIT)
                    flowing = _products(g_low, g_high, v_low, v_high, HIGH)
                    flowing = _with_map_gradient(
                        flowing, n, place, inside, seen, r, h, map_gradient, slots, map_strides, keys, MAPS
                    )
                    balance += tl.sum(share * flowing, 1)
                first += sizes[p]
            tl.store(delta + here, balance, mask=inside)
            first = 0
            for p in tl.static_range(PIECES):
                limit = tl.load(lengths + p * rows + r)
                k_at = k_row * k_strides[3 * p] + h * k_strides[3 * p + 2]
                v_at = v_row * v_strides[3 * p] + h * v_strides[3 * p + 2]
                for start in range(0, limit, BLOCK_L):
                    key = start + tl.arange(0, BLOCK_L)
                    seen = key < limit
                    place = first + key
                    k_low, k_high = _rows(ks[p], k_at, key, k_strides[3 * p + 1], seen, DIM, LOW, HIGH, FLOAT32, UNIT)
                    score = _products(q_low, q_high, k_low, k_high, HIGH)
                    share = _map(
                        score, level, n, key, place, inside, seen, r, h, bias, bias_strides, scale, CAUSAL, BIAS
                    )
                    v_low, v_high = _rows(vs[p], v_at, key, v_strides[3 * p + 1], seen, DIM, LOW, HIGH, FLOAT32, UNIT)
                    flowing = _products(g_low, g_high, v_low, v_high, HIGH)
                    flowing = _with_map_gradient(
                        flowing, n, place, inside, seen, r, h, map_gradient, slots, map_strides, keys, MAPS
                    )
                    slope = (share * (flowing - balance[:, None])).to(k_low.dtype)
                    acc_low, lost_low = _add_product(acc_low, lost_low, slope, k_low)
                    if HIGH:
                        acc_high, lost_high = _add_product(acc_high, lost_high, slope, k_high)
                first += sizes[p]
    row = ((j.to(tl.int64) * queries + n) * heads + h) * DIM
    _put(out, row, acc_low * scale, acc_high * scale, inside, DIM, LOW, HIGH)


@triton.jit(do_not_specialize=["rows", "queries", "heads", "keys", "own", "first", "size"])
def _keys(
    q, k, v, gradient, source, q_rows, v_rows, lengths, bias, lse, map_gradient, slots, delta, out, q_strides, k_strides,
    v_strides, gradient_strides, bias_strides, map_strides, rows, queries, heads, keys, first, size, own, scale,
    DIM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
    FLOAT32: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr, BIAS: tl.constexpr, MAPS: tl.constexpr
):  # fmt: skip
    """dK of one piece: one row of K, head and block of keys. source: [R], which row of K each output row reads. lengths:
    [R], of the piece. first: its place among the keys of all pieces."""
    h = tl.program_id(1).to(tl.int64)
    j = tl.program_id(2)
    key = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    place = first + key
    at = j.to(tl.int64) * k_strides[0] + h * k_strides[2]
    acc_low = tl.zeros([BLOCK_L, LOW], tl.float32)
    acc_high = tl.zeros([BLOCK_L, HIGH if HIGH else LOW], tl.float32)
    lost_low, lost_high = acc_low, acc_high
    for row in range(j * own, rows + (j + 1 - rows) * own):
        if tl.load(source + row) == j:
            r = row + 0 * h  # 64 bits, in the interpreter too
            seen = key < tl.load(lengths + r)
            k_low, k_high = _rows(k, at, key, k_strides[1], seen, DIM, LOW, HIGH, FLOAT32, UNIT)
            v_at = tl.load(v_rows + r).to(tl.int64) * v_strides[0] + h * v_strides[2]
            v_low, v_high = _rows(v, v_at, key, v_strides[1], seen, DIM, LOW, HIGH, FLOAT32, UNIT)
            q_at = tl.load(q_rows + r).to(tl.int64) * q_strides[0] + h * q_strides[2]
            g_at = r * gradient_strides[0] + h * gradient_strides[2]
            for start in range(0, queries, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                inside = n < queries
                here = (r * heads + h) * queries + n
                level = tl.load(lse + here, mask=inside, other=float("-inf"))
                balance = tl.load(delta + here, mask=inside, other=0.0)
                q_low, q_high = _rows(q, q_at, n, q_strides[1], inside, DIM, LOW, HIGH, FLOAT32, UNIT)
                score = _products(q_low, q_high, k_low, k_high, HIGH)
                share = _map(score, level, n, key, place, inside, seen, r, h, bias, bias_strides, scale, CAUSAL, BIAS)
                g_low, g_high = _rows(gradient, g_at, n, gradient_strides[1], inside, DIM, LOW, HIGH, FLOAT32, UNIT)
                flowing = _products(g_low, g_high, v_low, v_high, HIGH)
                flowing = _with_map_gradient(
                    flowing, n, place, inside, seen, r, h, map_gradient, slots, map_strides, keys, MAPS
                )
                slope = tl.trans((share * (flowing - balance[:, None])).to(q_low.dtype))
                acc_low, lost_low = _add_product(acc_low, lost_low, slope, q_low)
                if HIGH:
                    acc_high, lost_high = _add_product(acc_high, lost_high, slope, q_high)
    row = ((j.to(tl.int64) * size + key) * heads + h) * DIM
    _put(out, row, acc_low * scale, acc_high * scale, key < size, DIM, LOW, HIGH)


@triton.jit(do_not_specialize=["rows", "queries", "heads", "own", "first", "size"])
def _values(
    q, k, gradient, source, q_rows, k_rows, lengths, bias, lse, out, q_strides, k_strides, gradient_strides, bias_strides,
    rows, queries, heads, first, size, own, scale, DIM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, FLOAT32: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr,
    BIAS: tl.constexpr
):  # fmt: skip
    """dV of one piece, like `_keys`."""
    h = tl.program_id(1).to(tl.int64)
    j = tl.program_id(2)
    key = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    place = first + key
    acc_low = tl.zeros([BLOCK_L, LOW], tl.float32)
    acc_high = tl.zeros([BLOCK_L, HIGH if HIGH else LOW], tl.float32)
    lost_low, lost_high = acc_low, acc_high
    for row in range(j * own, rows + (j + 1 - rows) * own):
        if tl.load(source + row) == j:
            r = row + 0 * h  # 64 bits, in the interpreter too
            seen = key < tl.load(lengths + r)
            k_at = tl.load(k_rows + r).to(tl.int64) * k_strides[0] + h * k_strides[2]
            k_low, k_high = _rows(k, k_at, key, k_strides[1], seen, DIM, LOW, HIGH, FLOAT32, UNIT)
            q_at = tl.load(q_rows + r).to(tl.int64) * q_strides[0] + h * q_strides[2]
            g_at = r * gradient_strides[0] + h * gradient_strides[2]
            for start in range(0, queries, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                inside = n < queries
                level = tl.load(lse + (r * heads + h) * queries + n, mask=inside, other=float("-inf"))
                q_low, q_high = _rows(q, q_at, n, q_strides[1], inside, DIM, LOW, HIGH, FLOAT32, UNIT)
                score = _products(q_low, q_high, k_low, k_high, HIGH)
                share = _map(score, level, n, key, place, inside, seen, r, h, bias, bias_strides, scale, CAUSAL, BIAS)
                g_low, g_high = _rows(gradient, g_at, n, gradient_strides[1], inside, DIM, LOW, HIGH, FLOAT32, UNIT)
                share = tl.trans(share.to(g_low.dtype))
                acc_low, lost_low = _add_product(acc_low, lost_low, share, g_low)
                if HIGH:
                    acc_high, lost_high = _add_product(acc_high, lost_high, share, g_high)
    row = ((j.to(tl.int64) * size + key) * heads + h) * DIM
    _put(out, row, acc_low, acc_high, key < size, DIM, LOW, HIGH)


def variants() -> list[Variant]:
    """Of the attention of an image to itself, and, of that to text, the gradient of the queries with that of its maps."""
    found = []
    for dtype in DTYPES:
        for dim in (40, 64, 80, 160):
            found += [
                _variant("queries", _queries, dim, dtype, {"PIECES": 1, "MAPS": False}),
                _variant("queries_maps", _queries, dim, dtype, {"PIECES": 1, "MAPS": True}),
                _variant("keys", _keys, dim, dtype, {"MAPS": False}),
                _variant("values", _values, dim, dtype, {}),
            ]
    return found


def _variant(name: str, kernel: Any, dim: int, dtype: torch.dtype, flags: dict[str, int | bool]) -> Variant:
    t = gradient_tiles(dim, dtype)
    absent = ("bias",) if flags.get("MAPS", True) else ("bias", "map_gradient", "slots")
    constants: dict[str, int | bool | None] = {
        **{"DIM": dim, "LOW": t.low, "HIGH": t.high, "BLOCK_N": t.queries, "BLOCK_L": t.keys},
        **{"FLOAT32": False, "UNIT": 8, "CAUSAL": False, "BIAS": False},
        **flags,
        **dict.fromkeys(absent),
    }
    element = f"*{DTYPES[dtype]}"
    types: dict[str, str | tuple[str, ...]] = {
        **dict.fromkeys(("q", "k", "v", "gradient", "out"), element),
        **dict.fromkeys(("ks", "vs"), (element,)),
        **dict.fromkeys(("source", "q_rows", "k_rows", "v_rows", "lengths", "slots"), "*i32"),
        **dict.fromkeys(("lse", "lse_gradient", "map_gradient", "delta"), "*fp32"),
        "sizes": ("i32",),
        **{f"{side}_strides": ("i32",) * 3 for side in ("q", "k", "v", "gradient", "bias", "map")},
        **dict.fromkeys(("rows", "queries", "heads", "keys", "first", "size", "own"), "i32"),
        "scale": "fp32",
    }
    wanted = {name: types[name] for name in kernel.arg_names if name not in constants}
    name = f"attention_gradient_{name}_{dim}_{DTYPES[dtype]}"
    return Variant(name, kernel, wanted, constants, t.warps, t.stages, may_spill=True)
