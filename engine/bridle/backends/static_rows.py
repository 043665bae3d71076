"""Rows whose tensors stay where they are: what a CUDA graph reads and writes."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bridle.rows import KV, Branch, Rows, SiteTerms
from bridle_kernels.attention import Capture, MassShift

_NUMBERS = {(SiteTerms, "weight"), (MassShift, "share"), (Capture, "scale")}
"""Numbers that a request chooses: they become tensors, so that another value is not another program."""
_WRITTEN = {(MassShift, "out"), (Capture, "out")}
"""Tensors that an evaluation writes."""


def with_tensors(rows: Rows) -> Rows:
    """The same rows with every number that a request chooses as a tensor."""

    def numbers(owner: Any, name: str, value: Any) -> Any:
        if (type(owner), name) not in _NUMBERS or isinstance(value, Tensor):
            return value
        shape = (1, owner.columns.shape[-1]) if isinstance(owner, MassShift) else (_count(owner, rows),)
        return torch.full(shape, float(value), device=rows.sample.device)

    found: Rows = _mapped(rows, numbers)
    return found


def _count(owner: Any, rows: Rows) -> int:
    return int(owner.out.shape[0]) if isinstance(owner, Capture) else rows.sample.shape[0]


def described(rows: Rows) -> Hashable:
    """All of rows but the values of their tensors: two that agree can share a program."""
    places: dict[int, int] = {}
    shared = tuple(places.setdefault(id(leaf.tensor), place) for place, leaf in enumerate(_leaves(rows)))
    return _described(rows), shared


def _described(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), value.dtype)
    if isinstance(value, Branch):
        rest = tuple(_described(getattr(value, f.name)) for f in fields(value) if f.name not in ("weights", "config"))
        return ("branch", id(value.weights), rest)
    if is_dataclass(value):
        return (type(value), tuple(_described(getattr(value, f.name)) for f in fields(value)))
    if isinstance(value, Mapping):
        return tuple((key, _described(part)) for key, part in value.items())
    return tuple(_described(part) for part in value) if isinstance(value, tuple) else value


class StaticRows:
    """A copy of rows in memory of its own, which other rows of the same description can be copied to."""

    def __init__(self, rows: Rows) -> None:
        self._buffers: dict[int, Tensor] = {}
        self._bound: list[Tensor | None] = []
        self._static: list[Tensor] = []
        self.rows: Rows = _mapped(rows, self._keep)

    def _keep(self, owner: Any, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # Who shares a tensor shares its copy: sites that capture into one buffer add up there.
        if id(value) not in self._buffers:
            self._buffers[id(value)] = value.clone()
        buffer = self._buffers[id(value)]
        self._static.append(buffer)
        self._bound.append(None)
        return buffer

    def bind(self, rows: Rows) -> None:
        """Copies in the values of `rows`. Keys and values of a context that is the same object are there already."""
        for place, leaf in enumerate(_leaves(rows)):
            if not leaf.kept or self._bound[place] is not leaf.tensor:
                self._static[place].copy_(leaf.tensor)
                self._bound[place] = leaf.tensor

    def hand_out(self, rows: Rows) -> None:
        """Copies what an evaluation wrote into the tensors of `rows`."""
        for place, leaf in enumerate(_leaves(rows)):
            if leaf.written:
                leaf.tensor.copy_(self._static[place])


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A tensor of rows. written: by an evaluation. kept: it never changes, a context's keys or values."""

    tensor: Tensor
    written: bool
    kept: bool


def _leaves(rows: Rows) -> list[_Leaf]:
    """Every tensor in order."""
    found: list[_Leaf] = []

    def collect(owner: Any, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            found.append(_Leaf(value, (type(owner), name) in _WRITTEN, isinstance(owner, KV)))
        return value

    _mapped(rows, collect)
    return found


def _mapped(value: Any, change: Callable[[Any, str, Any], Any], owner: Any = None, name: str = "") -> Any:
    """The same with change(owner, field, leaf) for every leaf; the weights of a branch are none."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = ("weights", "config") if isinstance(value, Branch) else ()
        parts = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in kept}
        return replace(value, **{key: _mapped(part, change, value, key) for key, part in parts.items()})
    if isinstance(value, Mapping):
        return {key: _mapped(part, change, owner, name) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_mapped(part, change, owner, name) for part in value)
    return change(owner, name, value)
