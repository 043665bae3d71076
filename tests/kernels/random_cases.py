"""Random cases of the ops of the CPU core: sides, values, places in memory, all of them from one seed.

Every run draws fresh seeds. A failure says how to replay its case: BRIDLE_TEST_SEED=<seed> and the name of the test.
BRIDLE_TEST_LONG=1 runs many more.
"""

import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from numerics import GUARD, assert_as_good_as_peer, assert_integer_exact, assert_within_bound, bits, poisoned

DIMS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 77, 80, 97, 127, 128, 129, 160, 257, 320)
OFFSETS = (0, 1, 2, 3, 4, 7)
"""Elements between where an allocation may begin and where a tensor does."""
KINDS = ("normal", "uniform", "subnormal", "powers", "huge", "one hot", "equal", "nan", "inf")
NOT_FINITE = ("nan", "inf")
T = TypeVar("T")
_LONG = 50 if os.environ.get("BRIDLE_TEST_LONG") else 1
_MANY = 512
"""Outputs from which the largest error is no matter of luck."""


@dataclass
class _Placed:
    """A tensor inside a buffer of poison. written: an op may write the elements of the tensor."""

    buffer: Tensor
    tensor: Tensor
    before: Tensor
    written: bool

    def check(self) -> None:
        after = bits(self.buffer).clone()
        if self.written:
            self._elements(after).copy_(self._elements(self.before))
        where = "around an output" if self.written else "an input, or around it"
        assert torch.equal(after, self.before), f"rule D: written {where}"

    def _elements(self, of: Tensor) -> Tensor:
        return of.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset())


class Case:
    """What is drawn from one seed. kind: of the values, or "integers", whose results are exact."""

    def __init__(self, seed: int, kinds: Sequence[str] = KINDS) -> None:
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._placed: list[_Placed] = []
        self.kind = "integers" if self.chance(0.5) else self.pick(kinds)

    @property
    def exact(self) -> bool:
        """Whether the values are integers."""
        return self.kind == "integers"

    def chance(self, probability: float = 0.5) -> bool:
        """Whether something happens that often."""
        return self._random.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return self._random.choice(options)

    def sides(self, count: int, most: int, multiples: Sequence[int] = ()) -> list[int]:
        """`count` sides whose product is `most` at most; side i is a multiple of multiples[i]."""
        steps = [*multiples, *[1] * (count - len(multiples))]
        while True:
            sides = [self.pick([n for n in DIMS if n % step == 0]) for step in steps]
            if math.prod(sides) <= most:
                return sides

    def normal(self, *shape: int) -> Tensor:
        """float32, small integers if the case is of integers."""
        if self.exact:
            return torch.randint(-2, 3, shape, generator=self._generator).float()
        return torch.randn(shape, generator=self._generator)

    def values(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Of the case's kind, float32 that `dtype` holds."""
        plain = self.normal(*shape)
        if plain.numel() == 0:
            return plain
        limits = torch.finfo(dtype)
        match self.kind:
            case "uniform":
                plain = torch.rand(shape, generator=self._generator) * 2 - 1
            case "subnormal":
                plain = plain * (limits.tiny / 8)
            case "powers":
                plain = plain.sign() * 2.0 ** torch.randint(-8, 9, shape, generator=self._generator)
            case "huge":
                plain = plain.sign() * (limits.max / 4)
            case "one hot":
                hot = torch.randint(shape[-1], shape[:-1], generator=self._generator)
                plain = torch.nn.functional.one_hot(hot, shape[-1]).float()
            case "equal":
                plain = torch.full(shape, 1.3)
            case "nan" | "inf":
                plain.view(-1)[self._random.randrange(plain.numel())] = float(self.kind)
        return plain.to(dtype).float()

    def given(self, values: Tensor, dtype: torch.dtype = torch.float32, layout: str = "compact") -> Tensor:
        """An input. layout: "compact", "rows" (the last side lies together, others may be apart) or "any"."""
        return self._place(values.to(dtype), layout, written=False)

    def added_to(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """A compact tensor that an op writes over."""
        return self._place(values.to(dtype), "compact", written=True)

    def output(self, *shape: int, dtype: torch.dtype, layout: str = "compact") -> Tensor:
        """Poison."""
        return self._place(poisoned(shape, dtype), layout, written=True)

    def check(self) -> None:
        """Asserts that inputs, guards and gaps have kept their bits."""
        for placed in self._placed:
            placed.check()

    def _place(self, values: Tensor, layout: str, written: bool) -> Tensor:
        strides, elements = self._strides(values.shape, layout)
        first = GUARD + self.pick(OFFSETS)
        buffer = poisoned((first + elements + GUARD,), values.dtype)
        tensor = buffer.as_strided(values.shape, strides, first)
        bits(tensor).copy_(bits(values))
        self._placed.append(_Placed(buffer, tensor, bits(buffer).clone(), written))
        return tensor

    def _strides(self, shape: Sequence[int], layout: str) -> tuple[list[int], int]:
        """And the elements from the first to the last."""
        order, strides, step = list(range(len(shape))), [1] * len(shape), 1
        if layout == "any":
            self._random.shuffle(order)
        for i in reversed(order):
            strides[i] = step = step * (self.pick((1, 1, 2)) if layout == "any" else 1)
            step = step * max(shape[i], 1) + (0 if layout == "compact" else self.pick((0, 0, 1, 3)))
        return strides, step


def run(check: Callable[[Case], None], count: int, kinds: Sequence[str] = KINDS) -> None:
    """Checks `count` cases of fresh seeds, or that of BRIDLE_TEST_SEED."""
    replayed = os.environ.get("BRIDLE_TEST_SEED")
    first = int(replayed) if replayed else random.SystemRandom().randrange(2**31)
    seeds = range(first, first + (1 if replayed else count * _LONG))
    print(f"seeds {seeds[0]} to {seeds[-1]}")
    for seed in seeds:
        try:
            case = Case(seed, kinds)
            check(case)
            case.check()
        except Exception as error:
            name = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
            error.add_note(f"BRIDLE_TEST_SEED={seed} python -m pytest '{name}'")
            raise


def assert_accepted(
    case: Case, ours: Tensor, exact: Tensor, magnitude: Tensor, depth: float, peer: Callable[[], Tensor] | None
) -> None:
    """Rule C for integers; rules B and D for other values, A and E too where the result has many of them and there is a peer.

    What is not finite is so where and as it is in the exact result.
    """
    assert ours.shape == exact.shape
    if case.exact:
        return assert_integer_exact(ours, exact)
    finite = torch.isfinite(exact)
    if case.kind in NOT_FINITE:
        assert torch.equal(ours.double()[~finite].nan_to_num(7.0), exact[~finite].nan_to_num(7.0)), (
            "not finite elsewhere"
        )
        magnitude = magnitude.expand_as(exact)[finite]
        ours, exact = ours[finite], exact[finite]
    assert finite.all() or case.kind in NOT_FINITE, "void case: the exact result is not finite"
    bound = assert_within_bound(ours, exact, magnitude, depth)
    if peer and case.kind == "normal" and ours.numel() >= _MANY and bound.max() < exact.abs().max():
        assert_as_good_as_peer(ours, exact, peer(), magnitude, depth)


def assert_same(one: Tensor, other: Tensor) -> None:
    """Equal to the bit, but for what is not a number."""
    nan = one.isnan()
    assert torch.equal(nan, other.isnan()) and torch.equal(one[~nan], other[~nan]), (
        "rule D: depends on the place in memory"
    )
