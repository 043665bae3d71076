"""The acceptance rule for kernels: one function that all op tests use.

An output is compared with a float64 computation from the same rounded inputs and with PyTorch's own result in the tested
dtype. Rules A (no worse than twice the peer), B (an a-priori bound), D (fully written) and E (normalised error); rule
C, bit equality on integers, is `assert_integer_exact`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

_PEER_FACTOR = {torch.float32: 3.0, torch.float16: 2.0, torch.bfloat16: 2.0}
_UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_NMSE = {torch.float32: 1e-10, torch.float16: 1e-6, torch.bfloat16: 3e-5}
_POISON_BITS = {torch.float32: 0x7FA00000, torch.float16: 0x7D00, torch.bfloat16: 0x7FA0}
_INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
GUARD = 128
"""Elements of guard before and after a guarded buffer: 256 bytes of the smallest."""


def assert_as_good_as_peer(ours: Tensor, exact: Tensor, peer: Tensor, magnitude: Tensor, depth: float) -> None:
    """Rules A, B, D and E for one output.

    exact: float64 result. peer: PyTorch's result in the dtype of `ours`. magnitude: sum of the absolute values of the
    terms of each element, float64. depth: number of terms summed one after another in our kernel.
    """
    assert torch.isfinite(exact).all() and torch.isfinite(peer).all(), "void case: a reference is not finite"
    assert ours.shape == exact.shape and ours.dtype == peer.dtype
    dtype = ours.dtype
    bound = assert_within_bound(ours, exact, magnitude, depth)
    assert bound.max() < exact.abs().max(), "void case: the bound of rule B allows anything"
    error, peer_error = (ours.double() - exact).abs(), (peer.double() - exact).abs()
    floor = 2.0 * _rounding_floor(exact, dtype)
    assert error.max() <= _PEER_FACTOR[dtype] * peer_error.max() + floor, "rule A: largest error"
    assert error.mean() <= 1.5 * peer_error.mean() + floor / 4, "rule A: mean error"
    assert error.square().sum() <= _NMSE[dtype] * exact.square().sum(), "rule E: normalised error"


def assert_within_bound(ours: Tensor, exact: Tensor, magnitude: Tensor, depth: float) -> Tensor:
    """Rules B and D. Returns the bound of every element."""
    assert torch.isfinite(ours).all(), "rule D: an element was not written, or is not finite"
    bound = 4.0 * (depth * 2.0**-24 * magnitude + _UNIT_ROUNDOFF[ours.dtype] * exact.abs()) + 1e-30
    assert ((ours.double() - exact).abs() <= bound).all(), "rule B: an element is outside its bound"
    return bound


def _rounding_floor(exact: Tensor, dtype: torch.dtype) -> float:
    stored = exact.to(dtype)
    return float((((stored + 0.3) - 0.3).double() - stored.double()).abs().max())


def assert_integer_exact(ours: Tensor, exact: Tensor) -> None:
    """Rule C: equality with the exact result as its dtype rounds it, for partial sums that the accumulator holds."""
    assert exact.numel() == 0 or exact.abs().max() < 2**24, "void case: float32 does not hold the sums"
    assert torch.equal(ours, exact.to(ours.dtype)), "rule C: not exact on integers"


def bits(tensor: Tensor) -> Tensor:
    """The same memory as integers."""
    return tensor.view(_INTEGERS[tensor.dtype])


@contextmanager
def unwritten(*tensors: Tensor | None) -> Iterator[None]:
    """Rule D: asserts that inputs keep their bits."""
    given = [tensor for tensor in tensors if tensor is not None]
    before = [bits(tensor).clone() for tensor in given]
    yield
    assert all(torch.equal(bits(now), was) for now, was in zip(given, before, strict=True)), (
        "rule D: an input was written"
    )


def poisoned(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor full of signalling NaN."""
    return torch.full(shape, _POISON_BITS[dtype], dtype=_INTEGERS[dtype]).view(dtype)


@dataclass
class Guarded:
    """A tensor of poison with guard elements before and after it. `check` fails if the guards have changed."""

    buffer: Tensor
    tensor: Tensor

    @classmethod
    def make(cls, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> "Guarded":
        """A tensor of `shape`."""
        count = int(torch.Size(shape).numel())
        buffer = poisoned((count + 2 * GUARD,), dtype)
        return cls(buffer, buffer[GUARD : GUARD + count].view(shape))

    def check(self) -> None:
        """Asserts that the guards are untouched."""
        all_bits = bits(self.buffer)
        guards = torch.cat([all_bits[:GUARD], all_bits[-GUARD:]])
        assert (guards == _POISON_BITS[self.buffer.dtype]).all(), "rule D: written outside the output"
