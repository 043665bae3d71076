"""The acceptance rule for kernels: one function that all op tests use.

An output is compared with a float64 computation from the same rounded inputs and with PyTorch's own result in the tested
dtype. Rules A (no worse than twice the peer), B (an a-priori bound), D (fully written) and E (normalised error); rule
C, bit equality on integers, is `assert_integer_exact`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_PEER_FACTOR = {torch.float32: 3.0, torch.float16: 2.0, torch.bfloat16: 2.0}
_UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_NMSE = {torch.float32: 1e-10, torch.float16: 1e-6, torch.bfloat16: 3e-5}
_POISON_BITS = {torch.float32: 0x7FA00000, torch.float16: 0x7D00, torch.bfloat16: 0x7FA0}
_INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
GUARD = 64
"""Elements of guard before and after a guarded buffer."""


def assert_as_good_as_peer(ours: Tensor, exact: Tensor, peer: Tensor, magnitude: Tensor, depth: int) -> None:
    """Rules A, B, D and E for one output.

    exact: float64 result. peer: PyTorch's result in the dtype of `ours`. magnitude: sum of the absolute values of the
    terms of each element, float64. depth: number of terms summed one after another in our kernel.
    """
    assert torch.isfinite(exact).all() and torch.isfinite(peer).all(), "void case: a reference is not finite"
    assert ours.shape == exact.shape and ours.dtype == peer.dtype
    assert torch.isfinite(ours).all(), "rule D: an element was not written, or is not finite"
    dtype = ours.dtype
    error, peer_error = (ours.double() - exact).abs(), (peer.double() - exact).abs()
    floor = 2.0 * _rounding_floor(exact, dtype)
    assert error.max() <= _PEER_FACTOR[dtype] * peer_error.max() + floor, "rule A: largest error"
    assert error.mean() <= 1.5 * peer_error.mean() + floor / 4, "rule A: mean error"
    bound = 4.0 * (depth * 2.0**-24 * magnitude + _UNIT_ROUNDOFF[dtype] * exact.abs()) + 1e-30
    assert bound.max() < exact.abs().max(), "void case: the bound of rule B allows anything"
    assert (error <= bound).all(), "rule B: an element is outside its bound"
    assert error.square().sum() <= _NMSE[dtype] * exact.square().sum(), "rule E: normalised error"


def _rounding_floor(exact: Tensor, dtype: torch.dtype) -> float:
    stored = exact.to(dtype)
    return float((((stored + 0.3) - 0.3).double() - stored.double()).abs().max())


def assert_integer_exact(ours: Tensor, exact: Tensor) -> None:
    """Rule C: bit equality, for inputs whose partial sums are integers that the accumulator holds."""
    assert torch.equal(ours.double(), exact.double()), "rule C: not exact on integers"


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
        bits = self.buffer.view(_INTEGERS[self.buffer.dtype])
        guards = torch.cat([bits[:GUARD], bits[-GUARD:]])
        assert (guards == _POISON_BITS[self.buffer.dtype]).all(), "rule D: written outside the output"
