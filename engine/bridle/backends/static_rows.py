"""Rows and terms whose tensors stay where they are: what a CUDA graph reads and writes."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bridle.backends.buckets import all_rows, bucket, room
from bridle.rows import KV, Branch, Rows, SiteTerms, StepTerms
from bridle_kernels.attention import Capture, MassShift

_NUMBERS = {(SiteTerms, "weight"), (MassShift, "share"), (Capture, "scale")}
"""Numbers that a request chooses: they become tensors, so that another value is not another program."""
_WRITTEN = {(MassShift, "out"), (Capture, "out")}
"""Tensors that an evaluation writes."""
_CHANGING = _WRITTEN | {(Rows, "sample"), (StepTerms, "latents"), (StepTerms, "history")}
"""Tensors that may be changed in place between two steps. Every other one is what it was as long as it is the same object."""
_SHARED = (KV, Capture)
"""Whose tensors have one place where several segments or sites name the same one."""
_OMITTED: Mapping[type, tuple[str, ...]] = {Branch: ("weights", "config")}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a program computes: the model outputs of rows, or, with terms, the whole step."""

    rows: Rows
    terms: StepTerms | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor. room: the shape of its place. place: of the first leaf that shares it. changing, written: see above."""

    tensor: Tensor
    room: tuple[int, ...]
    place: int
    changing: bool
    written: bool


class Description:
    """leaves: every tensor, in order. key: all but the values; two evaluations that agree in it can share a program."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.leaves: list[Leaf] = []
        self._key: list[Hashable] = []
        self._places: dict[int, int] = {}
        self._device = evaluation.rows.sample.device
        self._visit(evaluation, None, "", evaluation.rows.sample.shape[0])
        self.key = tuple(self._key)

    def _visit(self, value: Any, owner: Any, name: str, rows: int) -> None:
        if isinstance(value, Tensor):
            self._add(value, owner, name, rows)
        elif is_dataclass(value):
            kind: type = type(value)
            self._key.append(kind)
            if isinstance(value, Branch):
                self._key += [id(value.weights), None if all_rows(value.rows, rows) else value.rows]
                rows = rows if all_rows(value.rows, rows) else 0
            for field in _field_names(kind):
                self._visit(getattr(value, field), value, field, rows)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self._key.append(key)
                self._visit(part, owner, name, rows)
        elif isinstance(value, tuple) and not (isinstance(owner, Branch) and name == "rows"):
            self._key.append(len(value))
            for part in value:
                self._visit(part, owner, name, rows)
        elif (type(owner), name) in _NUMBERS:
            self._add(_filled(float(value), _number_shape(owner, rows), self._device), owner, name, rows)
        elif not isinstance(owner, Branch) or name != "rows":
            self._key.append(value)

    def _add(self, tensor: Tensor, owner: Any, name: str, rows: int) -> None:
        here, kind = len(self.leaves), (type(owner), name)
        place = self._places.setdefault(id(tensor), here) if isinstance(owner, _SHARED) else here
        shape = room(owner, name, tensor, rows)
        self.leaves.append(Leaf(tensor, shape, place, kind in _CHANGING, kind in _WRITTEN))
        self._key.append((shape, tensor.dtype, place))


@lru_cache(maxsize=64)
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind) if f.name not in _OMITTED.get(kind, ()))


def _number_shape(owner: Any, rows: int) -> tuple[int, ...]:
    if isinstance(owner, MassShift):
        return (1, owner.columns.shape[-1])
    return (owner.out.shape[0],) if isinstance(owner, Capture) else (rows,)


@lru_cache(maxsize=1024)
def _filled(value: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.full(shape, value, device=device)


class StaticRows:
    """A copy of an evaluation in memory of its own, padded to its bucket, which others of the same key can be copied to."""

    def __init__(self, evaluation: Evaluation, description: Description) -> None:
        self._places: list[Tensor] = []
        self._bound: list[Tensor | None] = [None] * len(description.leaves)
        for leaf in description.leaves:
            shared = leaf.place < len(self._places)
            self._places.append(self._places[leaf.place] if shared else _place(leaf))
        self.evaluation: Evaluation = _rebuilt(evaluation, iter(self._places), evaluation.rows.sample.shape[0])
        self.bind(description)

    @property
    def nbytes(self) -> int:
        """Of all places, each once."""
        return sum({id(place): place.nbytes for place in self._places}.values())

    def bind(self, description: Description) -> None:
        """Copies in what has changed since the last time."""
        for index, leaf in enumerate(description.leaves):
            last = self._bound[index]
            if leaf.changing or last is not leaf.tensor:
                _fill(self._places[index], leaf.tensor, last)
                self._bound[index] = leaf.tensor

    def hand_out(self, description: Description) -> None:
        """Copies what an evaluation wrote into the tensors that were bound."""
        for index, leaf in enumerate(description.leaves):
            if leaf.written and leaf.place == index:
                leaf.tensor.copy_(_part(self._places[index], leaf.tensor))


def _place(leaf: Leaf) -> Tensor:
    if leaf.room == tuple(leaf.tensor.shape):
        return torch.empty_like(leaf.tensor)
    return leaf.tensor.new_zeros(leaf.room)


def _part(place: Tensor, tensor: Tensor) -> Tensor:
    """What of a place belongs to a tensor: its first rows."""
    return place if place.shape == tensor.shape else place[: tensor.shape[0]]


def _fill(place: Tensor, tensor: Tensor, last: Tensor | None) -> None:
    _part(place, tensor).copy_(tensor)
    if last is not None and last.shape != tensor.shape and place.ndim:
        place[tensor.shape[0] :].zero_()


def _rebuilt(value: Any, places: Iterator[Tensor], rows: int, owner: Any = None, name: str = "") -> Any:
    """The same with its tensors, and numbers that became some, from `places`, in the order of `Description`."""
    if isinstance(value, Tensor) or (type(owner), name) in _NUMBERS:
        return next(places)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f: _rebuilt(getattr(value, f), places, rows, value, f) for f in _field_names(type(value))}
        return replace(value, **parts)
    if isinstance(value, Mapping):
        return {key: _rebuilt(part, places, rows, owner, name) for key, part in value.items()}
    if isinstance(owner, Branch) and name == "rows":
        return tuple(range(bucket(rows))) if all_rows(value, rows) else value
    if isinstance(value, tuple):
        return tuple(_rebuilt(part, places, rows, owner, name) for part in value)
    return value
