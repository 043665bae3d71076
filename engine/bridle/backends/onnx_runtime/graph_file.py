"""ONNX files from outside: read and judged before ONNX Runtime sees them.

Field numbers are those of onnx.proto (ONNX 1.23). The reader keeps names, types and places of tensors and no values.
"""

import math
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bridle.backends.onnx_runtime import element_types
from bridle.backends.onnx_runtime.wire import Budget, Message, WireError
from bridle.errors import ModelLoadError

MAX_BYTES = 2**31 - 1
"""Protocol buffers end here; larger graphs keep their weights in a file of their own."""

MAX_NODES = 200_000
MAX_DEPTH = 8
MAX_RANK = 8
DATA = "model.onnx_data"
"""The one file of weights that graphs may have beside them; those of one folder share it."""

_STANDARD = ("", "ai.onnx")
_CONTRIB = "com.microsoft"
CONTRIB_OPS = frozenset(
    {
        "BiasAdd",
        "BiasGelu",
        "BiasSplitGelu",
        "FastGelu",
        "FusedConv",
        "FusedMatMul",
        "Gelu",
        "GroupNorm",
        "MultiHeadAttention",
        "NhwcConv",
        "NhwcFusedConv",
        "QuickGelu",
        "SkipGroupNorm",
        "SkipLayerNormalization",
    }
)
"""Ops of ONNX Runtime's own that a graph may use. Others of that domain load compiled code or files (`EPContext`)."""

_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
_FORBIDDEN_METADATA = frozenset({"ort_config"})


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output. dims: a number where the graph fixes one, else None."""

    name: str
    type: str
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """A weight in the file beside the graph. offset, length: bytes."""

    name: str
    type: str
    dims: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph that may be given to ONNX Runtime. label: how messages call it. defaults: inputs that need not be fed."""

    path: Path
    label: str
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    defaults: frozenset[str]
    external: tuple[ExternalTensor, ...]

    @property
    def data(self) -> Path:
        """Where its external weights are."""
        return self.path.with_name(DATA)

    @property
    def weight_bytes(self) -> int:
        """Of the graph and its external weights."""
        return self.path.stat().st_size + sum(tensor.length for tensor in self.external)


def read_graph(path: Path, label: str) -> GraphFile:
    """Reads and checks a graph. No other file is opened. Raises ModelLoadError for everything that is refused.

    label: how messages call the file.
    """
    size = _regular_size(path, label)
    if not 0 < size <= MAX_BYTES:
        raise ModelLoadError(label, f"has {size} bytes, wants 1 to {MAX_BYTES}")
    try:
        return _Reader(path, label).read(Message(mapped(path), Budget()))
    except WireError as problem:
        raise ModelLoadError(label, f"is not an ONNX model: {problem}") from None


class _Reader:
    """One pass over a model. It stops at the first thing that it does not accept."""

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._label = label
        self._nodes = 0
        self._external: dict[str, ExternalTensor] = {}

    def read(self, model: Message) -> GraphFile:
        """The main graph of a ModelProto."""
        self._check_model(model)
        graph = model.message(7)
        if graph is None:
            raise self._refused("has no graph")
        names = self._check_graph(graph, depth=1)
        inputs, outputs = self._values(graph, 11), self._values(graph, 12)
        if not outputs:
            raise self._refused("has no output")
        external = tuple(self._external.values())
        if external:
            _check_data(self._path, self._label, external)
        return GraphFile(self._path, self._label, inputs, outputs, frozenset(names & inputs.keys()), external)

    def _check_model(self, model: Message) -> None:
        if 20 in model:
            raise self._refused("carries training information")
        if 25 in model:
            raise self._refused("defines functions; export it with its functions inlined")
        for opset in model.messages(8):
            domain = opset.text(1)
            if domain not in (*_STANDARD, _CONTRIB):
                raise self._refused(f"uses ops of the domain {_shown(domain)}: only standard ops are run")
        for entry in model.messages(14):
            if entry.text(1) in _FORBIDDEN_METADATA:
                raise self._refused(f"has settings for ONNX Runtime in its metadata: {_shown(entry.text(1))}")

    def _check_graph(self, graph: Message, depth: int) -> set[str]:
        """Every node and tensor of a graph and of those inside it. Returns the names of its weights.

        depth: 1 for the main graph, the only one whose weights may be in a file.
        """
        if depth > MAX_DEPTH:
            raise self._refused(f"has graphs inside graphs, more than {MAX_DEPTH} deep")
        if 15 in graph:
            raise self._refused("has sparse weights")
        names: set[str] = set()
        for tensor in graph.messages(5):
            name = self._check_tensor(tensor, external_allowed=depth == 1)
            if name in names:
                raise ModelLoadError(self._label, "stands there twice", name[:120])
            names.add(name)
        for node in graph.messages(1):
            self._check_node(node, depth)
        return names

    def _check_node(self, node: Message, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._refused(f"has more than {MAX_NODES} nodes")
        op, domain = node.text(4), node.text(7)
        if domain not in _STANDARD and not (domain == _CONTRIB and op in CONTRIB_OPS):
            raise self._refused(f"uses the op {_shown(op)} of the domain {_shown(domain)}, which is not run")
        for attribute in node.messages(5):
            for number in (22, 23):
                if number in attribute:
                    raise self._refused(f"has a sparse tensor in a node of type {_shown(op)}")
            for number in (5, 10):
                for tensor in attribute.messages(number):
                    self._check_tensor(tensor, external_allowed=False)
            for number in (6, 11):
                for graph in attribute.messages(number):
                    self._check_graph(graph, depth + 1)

    def _check_tensor(self, tensor: Message, external_allowed: bool) -> str:
        name = tensor.text(8)
        kind = element_types.NAMES.get(tensor.integer(2))
        if kind is None:
            raise ModelLoadError(self._label, f"is of type number {tensor.integer(2)}", name[:120])
        dims = tensor.integers(1)
        if len(dims) > MAX_RANK or any(not 0 <= dim < 2**40 for dim in dims):
            raise ModelLoadError(self._label, f"has dimensions {_shown(str(dims))}", name[:120])
        length = math.prod(dims) * element_types.WIDTHS[kind]
        if tensor.integer(14) != 0 or 13 in tensor:
            if not external_allowed:
                raise ModelLoadError(self._label, "keeps its values in a file and is not a weight", name[:120])
            self._external[name] = self._external_tensor(tensor, name, kind, dims, length)
        elif tensor.size(9) not in (None, length):
            raise ModelLoadError(self._label, f"has {tensor.size(9)} bytes, its shape wants {length}", name[:120])
        return name

    def _external_tensor(
        self, tensor: Message, name: str, kind: str, dims: tuple[int, ...], length: int
    ) -> ExternalTensor:
        if tensor.integer(14) != 1 or 9 in tensor:
            raise ModelLoadError(self._label, "does not say plainly where its values are", name[:120])
        entries: dict[str, str] = {}
        for entry in tensor.messages(13):
            key = entry.text(1)
            if key not in _EXTERNAL_KEYS or key in entries:
                raise ModelLoadError(self._label, f"has an unknown or repeated key {_shown(key)}", name[:120])
            entries[key] = entry.text(2)
        if entries.get("location") != DATA:
            got = _shown(entries.get("location", ""))
            raise ModelLoadError(self._label, f"has its values in {got}, wants them in '{DATA}' beside it", name[:120])
        offset, given = (_number(entries.get(key, default)) for key, default in (("offset", "0"), ("length", "")))
        if offset is None or given != length:
            raise ModelLoadError(
                self._label, f"has an offset or length that does not suit its {length} bytes", name[:120]
            )
        return ExternalTensor(name, kind, dims, offset, length)

    def _values(self, graph: Message, number: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for value in graph.messages(number):
            name = value.text(1)
            if not name or name in found:
                raise self._refused(f"has an input or output that is nameless or stands there twice: {_shown(name)}")
            found[name] = self._value(name, value)
        return found

    def _value(self, name: str, value: Message) -> Value:
        kind = value.message(2)
        tensor = None if kind is None else kind.message(1)
        shape = None if tensor is None else tensor.message(2)
        element = "" if tensor is None else element_types.NAMES.get(tensor.integer(1), "")
        if shape is None or element not in element_types.TORCH:
            raise self._refused(f"has an input or output {_shown(name)} that is no tensor of numbers with a known rank")
        dims = tuple(dim.integer(1) if 1 in dim else None for dim in shape.messages(1))
        if len(dims) > MAX_RANK:
            raise self._refused(f"has an input or output {_shown(name)} of {len(dims)} dimensions")
        return Value(name, element, dims)

    def _refused(self, problem: str) -> ModelLoadError:
        return ModelLoadError(self._label, problem)


def _check_data(path: Path, label: str, tensors: tuple[ExternalTensor, ...]) -> None:
    """Raises ModelLoadError for a file of weights that is not one of its own, or too short."""
    shown = f"{label.rpartition('/')[0]}/{DATA}"
    size = _regular_size(path.with_name(DATA), shown)
    for tensor in tensors:
        if tensor.offset + tensor.length > size:
            end = tensor.offset + tensor.length
            raise ModelLoadError(shown, f"has {size} bytes, this tensor ends at {end}", tensor.name[:120])


def _regular_size(path: Path, label: str) -> int:
    """Bytes of a file that is no link of any kind. Raises ModelLoadError."""
    try:
        found = os.lstat(path)
    except OSError:
        raise ModelLoadError(label, "is missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise ModelLoadError(label, "is a link or not a regular file; graphs are read from plain folders")
    if found.st_nlink > 1:
        raise ModelLoadError(label, "has a second name (hard link); copy it")
    return found.st_size


def mapped(path: Path) -> memoryview:
    """The bytes of a file that is not empty. The mapping ends with the last view of it."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _number(text: str) -> int | None:
    """A count of bytes written in plain digits, None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _shown(text: str) -> str:
    return ascii(text[:60])
