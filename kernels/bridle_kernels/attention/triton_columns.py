"""Columns of a segment's map on a GPU, from the log-sum-exp of the forward: only the named keys are multiplied again.

Each element is written by one program, heads and queries are summed in order: the same bits every time.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from bridle_kernels.attention.launch import column_tiles
from bridle_kernels.attention.triton import HEAD_DIMS, tile
from bridle_kernels.triton_variant import DTYPES, Variant


@triton.jit
def _probabilities(
    q,
    ks,
    q_rows,
    k_rows,
    lengths,
    bias,
    lse,
    sizes,
    q_strides,
    k_strides,
    bias_strides,
    rows,
    queries,
    heads,
    scale,
    r,
    h,
    n,
    column,
    PIECES: tl.constexpr,
    DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BIAS: tl.constexpr,
    FLOAT32: tl.constexpr,
    UNIT: tl.constexpr,
):
    """[n, column] of the map, 0 where a column is -1 or behind its piece's length."""
    inside = n < queries
    low = tl.arange(0, LOW)
    q_at = tl.load(q_rows + r).to(tl.int64) * q_strides[0] + h * q_strides[2]
    k_row = tl.load(k_rows + r).to(tl.int64)
    q_low = tile(q, q_at, n, q_strides[1], inside, low, DIM, FLOAT32, UNIT)
    score = tl.zeros([n.shape[0], column.shape[0]], tl.float32)
    if HIGH:
        high = LOW + tl.arange(0, HIGH)
        q_high = tile(q, q_at, n, q_strides[1], inside, high, DIM, FLOAT32, UNIT)
    named = tl.zeros([column.shape[0]], tl.int1)
    first = 0
    for p in tl.static_range(PIECES):
        key = column - first
        seen = (key >= 0) & (key < tl.load(lengths + p * rows + r))
        k_at = k_row * k_strides[3 * p] + h * k_strides[3 * p + 2]
        k_low = tile(ks[p], k_at, key, k_strides[3 * p + 1], seen, low, DIM, FLOAT32, UNIT)
        score = tl.dot(q_low, tl.trans(k_low), score, input_precision="ieee")
        if HIGH:
            k_high = tile(ks[p], k_at, key, k_strides[3 * p + 1], seen, high, DIM, FLOAT32, UNIT)
            score = tl.dot(q_high, tl.trans(k_high), score, input_precision="ieee")
        named = named | seen
        first += sizes[p]
    visible = inside[:, None] & named[None, :]
    score = score * scale
    if BIAS:
        at = n.to(tl.int64)[:, None] * bias_strides[2] + column[None, :]
        at += r * bias_strides[0] + h * bias_strides[1]
        score += tl.load(bias + at, mask=visible, other=0.0).to(tl.float32)
    level = tl.load(lse + (r * heads + h) * queries + n, mask=inside, other=float("-inf"))
    visible = visible & (level != float("-inf"))[:, None]
    level = tl.where(level == float("-inf"), 0.0, level)
    return tl.where(visible, tl.exp(score - level[:, None]), 0.0)


@triton.jit(do_not_specialize=["rows", "queries", "heads", "count", "column_stride"])
def _capture(
    q,
    ks,
    q_rows,
    k_rows,
    lengths,
    bias,
    lse,
    keep,
    taken,
    columns,
    factors,
    out,
    sizes,
    q_strides,
    k_strides,
    bias_strides,
    out_strides,
    column_stride,
    keep_stride,
    rows,
    queries,
    heads,
    count,
    scale,
    PIECES: tl.constexpr,
    DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BIAS: tl.constexpr,
    FLOAT32: tl.constexpr,
    UNIT: tl.constexpr,
    KEEP: tl.constexpr,
    MEAN: tl.constexpr,
):
    """Adds columns [BLOCK_N, BLOCK_S] of row taken[c]: of one head, or of the mean of all."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    s = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    # Programs of the mean are one per capture, else one per capture and head.
    together = heads if MEAN else 1
    c = (tl.program_id(2) * together // heads).to(tl.int64)
    own = (tl.program_id(2) * together % heads).to(tl.int64)
    r = tl.load(taken + c).to(tl.int64)
    column = tl.load(columns + c * column_stride + s, mask=s < count, other=-1)
    total = tl.zeros([BLOCK_N, BLOCK_S], tl.float32)
    for step in range(0, together):
        h = own + step
        total += _probabilities(
            q, ks, q_rows, k_rows, lengths, bias, lse, sizes, q_strides, k_strides, bias_strides,
            rows, queries, heads, scale, r, h, n, column, PIECES, DIM, LOW, HIGH, BIAS, FLOAT32, UNIT,
        )  # fmt: skip
    if MEAN:
        total = total / heads
    if KEEP:
        kept = tl.load(keep + r * keep_stride + column, mask=column >= 0, other=0.0)
        total = total * kept[None, :]
    at = out + c * out_strides[0] + own * out_strides[1]
    at += n.to(tl.int64)[:, None] * out_strides[2] + s.to(tl.int64)[None, :] * out_strides[3]
    valid = (n < queries)[:, None] & (s < count)[None, :]
    tl.store(at, tl.load(at, mask=valid, other=0.0) + total * tl.load(factors + c), mask=valid)


@triton.jit(do_not_specialize=["rows", "queries", "heads", "count", "column_stride"])
def _mass(
    q,
    ks,
    q_rows,
    k_rows,
    lengths,
    bias,
    lse,
    columns,
    out,
    sizes,
    q_strides,
    k_strides,
    bias_strides,
    column_stride,
    rows,
    queries,
    heads,
    count,
    scale,
    PIECES: tl.constexpr,
    DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BIAS: tl.constexpr,
    FLOAT32: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Sums of columns over all queries, of one row and head."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    h = tl.program_id(1).to(tl.int64)
    r = tl.program_id(2).to(tl.int64)
    column = tl.load(columns + r * column_stride + s, mask=s < count, other=-1)
    total = tl.zeros([BLOCK_S], tl.float32)
    for start in range(0, queries, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        part = _probabilities(
            q, ks, q_rows, k_rows, lengths, bias, lse, sizes, q_strides, k_strides, bias_strides,
            rows, queries, heads, scale, r, h, n, column, PIECES, DIM, LOW, HIGH, BIAS, FLOAT32, UNIT,
        )  # fmt: skip
        total += tl.sum(part, 0)
    tl.store(out + (r * heads + h) * count + s, total, mask=s < count)


def variants() -> list[Variant]:
    """Captures of columns, of every head and of their mean, from text alone, with a bias, and from two pieces; masses,
    which are computed in float32, and captures of shifted maps."""
    found = []
    for dtype in DTYPES:
        copied = dtype != torch.float32
        for dim in HEAD_DIMS:
            found += [
                _variant("capture_heads", _capture, dim, dtype, 1, {"KEEP": False, "MEAN": False, "FLOAT32": False}),
                _variant("capture_mean", _capture, dim, dtype, 1, {"KEEP": False, "MEAN": True, "FLOAT32": False}),
                _variant(
                    "capture_bias", _capture, dim, dtype, 1, {"KEEP": False, "MEAN": True, "FLOAT32": False}, bias=True
                ),
                _variant("capture_pieces", _capture, dim, dtype, 2, {"KEEP": False, "MEAN": True, "FLOAT32": False}),
                _variant("capture_shifted", _capture, dim, dtype, 1, {"KEEP": True, "MEAN": True, "FLOAT32": copied}),
                _variant("mass", _mass, dim, dtype, 1, {"FLOAT32": copied}),
            ]
    return found


def _variant(
    name: str, kernel: Any, dim: int, dtype: torch.dtype, pieces: int, flags: Mapping[str, bool], bias: bool = False
) -> Variant:
    t = column_tiles(dim, torch.float32 if flags["FLOAT32"] else dtype)
    blocks = {"DIM": dim, "LOW": t.low, "HIGH": t.high, "BLOCK_N": t.queries, "BLOCK_S": t.keys}
    present = {"bias": bias, "keep": flags.get("KEEP", True)}
    constants: dict[str, int | bool | None] = {"PIECES": pieces, **blocks, "BIAS": bias, "UNIT": 8, **flags}
    constants |= {operand: None for operand in kernel.arg_names if not present.get(operand, True)}
    types: dict[str, str | tuple[str, ...]] = {
        "q": f"*{DTYPES[dtype]}",
        "ks": (f"*{DTYPES[dtype]}",) * pieces,
        **dict.fromkeys(("q_rows", "k_rows", "lengths", "taken", "columns"), "*i32"),
        **dict.fromkeys(("bias", "lse", "keep", "factors", "out"), "*fp32"),
        **{"sizes": ("i32",) * pieces, "q_strides": ("i32",) * 3, "k_strides": ("i32",) * 3 * pieces},
        **{"bias_strides": ("i32",) * 3, "out_strides": ("i32",) * 4},
        **dict.fromkeys(("column_stride", "keep_stride", "rows", "queries", "heads", "count"), "i32"),
        "scale": "fp32",
    }
    wanted = {name: types[name] for name in kernel.arg_names if name not in constants}
    return Variant(f"attention_{name}_{dim}_{DTYPES[dtype]}", kernel, wanted, constants, t.warps, t.stages)
