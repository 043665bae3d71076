"""Checks of how the gradients of attention add up many rows in float32: on a GPU, or in the interpreter."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from attention_cases import rand
from gpu_attention_checks import Check
from torch import Tensor
from triton.runtime import interpreter

from bridle_kernels.attention import Piece, Segment
from bridle_kernels.attention.gpu_operands import gpu_segment
from bridle_kernels.attention.gradient import Backward, Setting
from bridle_kernels.attention.triton_gradient import _add_product
from numerics import assert_as_good_as_peer

KEYS, BLOCK = 16, 16


def checks(device: str) -> Iterator[Check]:
    """Names, and functions that raise AssertionError."""
    yield "sums over 4096 queries", lambda: many_rows(device)
    yield "infinity", lambda: infinity(device)
    for name in ("queries", "keys", "values"):
        yield f"small after large: {name}", lambda name=name: small_after_large(name, device)


@triton.jit
def _sum_kernel(a, b, out, rows, KEYS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, RUNNING: tl.constexpr):
    """out [KEYS, DIM] = a^T b, of a [rows, KEYS] and b [rows, DIM], as `_keys` and `_values` add up, or as one running sum."""
    key, channel = tl.arange(0, KEYS), tl.arange(0, DIM)
    total = tl.zeros([KEYS, DIM], tl.float32)
    lost = total
    for start in range(0, rows, BLOCK):
        n = start + tl.arange(0, BLOCK)
        left = tl.trans(tl.load(a + n[:, None] * KEYS + key[None, :]))
        right = tl.load(b + n[:, None] * DIM + channel[None, :])
        if RUNNING:
            total = tl.dot(left, right, total, input_precision="ieee")
        else:
            total, lost = _add_product(total, lost, left, right)
    tl.store(out + key[:, None] * DIM + channel[None, :], total)


@contextmanager
def dots_in_order() -> Iterator[None]:
    """In the interpreter: float32 dots that go on from their accumulator with one fused product after another, as GPUs do."""
    builder: Any = interpreter.InterpreterBuilder
    before = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        total = d.data
        for k in range(a.data.shape[1]):
            # Exact in float64, and so rounded as a fused multiply-add, but for ties of ties.
            product = a.data[:, k, None].astype(np.float64) * b.data[None, k]
            total = (product + total).astype(np.float32)
        return interpreter.TensorHandle(total, d.dtype.scalar)

    builder.create_dot = create_dot
    try:
        yield
    finally:
        builder.create_dot = before


def many_rows(device: str) -> None:
    """dV of 4096 queries passes the acceptance rule; one running sum does not, which is the control."""
    share = (3 * rand(1, 4096, KEYS)).softmax(0).float()
    gradient = rand(2, 4096, 64).float()
    exact, peer = share.double().T @ gradient.double(), share.T @ gradient
    magnitude = share.double().T @ gradient.double().abs()
    ours, running = (summed(share, gradient, running, device) for running in (False, True))
    assert_as_good_as_peer(ours, exact, peer, magnitude, BLOCK + 2)
    assert (running.double() - exact).abs().max() > 3.0 * (peer.double() - exact).abs().max(), "the control"


def summed(a: Tensor, b: Tensor, running: bool, device: str) -> Tensor:
    out = torch.full((a.shape[1], b.shape[1]), torch.nan, device=device)
    with dots_in_order() if device == "cpu" else nullcontext():
        _sum_kernel[(1,)](a.to(device), b.to(device), out, len(a), KEYS, b.shape[1], BLOCK, running, num_warps=8)
    return out.cpu()


def infinity(device: str) -> None:
    """An infinite term makes an infinite sum, as it does without compensation; a NaN stays one."""
    a, b = torch.ones(4 * BLOCK, KEYS), torch.ones(4 * BLOCK, 32)
    b[3, 5], b[3, 6], b[20, 7] = torch.inf, -torch.inf, torch.nan
    wanted = torch.full((32,), 4.0 * BLOCK)
    wanted[5:8] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    with np.errstate(invalid="ignore"):
        found = summed(a, b, False, device)
    assert torch.equal(found.nan_to_num(7e7), wanted.expand(KEYS, 32).nan_to_num(7e7))


def small_after_large(name: str, device: str) -> None:
    """2^28 + 1 + 1 + ... over queries, or over keys: a sum that is not compensated adds nothing of what follows the first
    tile, and is wrong by 3.5 times what is allowed."""
    count, scale = 128, 0.5
    terms = torch.ones(1, count, 1, 40)
    terms[:, 0] = 2.0**28
    queries, keys = (KEYS, count) if name == "queries" else (count, KEYS)
    zero = {n: torch.zeros(1, n, 1, 40) for n in (queries, keys)}
    q = terms if name == "keys" else zero[queries]
    k = terms if name == "queries" else zero[keys]
    back = backward(q, k, zero[keys], terms if name == "values" else zero[queries], scale, device)
    balance = -back.lse_gradient
    found = {
        "queries": lambda: back.queries()[0],
        "keys": lambda: back.keys(0, balance),
        "values": lambda: back.values(0),
    }
    exact = terms.double().sum(1, keepdim=True) * (1.0 if name == "values" else scale)
    error = (found[name]().cpu().double() - exact).abs() / exact
    assert error.max() <= 2.0**-23


def backward(q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, scale: float, device: str) -> Backward:
    """Of one head. Where Q or K is 0, all probabilities are 1: the log-sum-exps are given as 0, so that no exponential is
    rounded. Where V is 0 and 1 flows into the log-sum-exps, so are all of dS."""
    q, k, v, gradient = (t.to(device) for t in (q, k, v, gradient))
    lse = torch.zeros(1, 1, q.shape[1], device=device)
    setting = Setting(gpu_segment(q, Segment((Piece(k, v),)), False), scale, False, (), (True, True, True))
    return Backward(q, setting, gradient, lse, torch.ones_like(lse), None, None)
