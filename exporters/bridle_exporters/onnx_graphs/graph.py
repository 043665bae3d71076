"""An ONNX graph under construction, and the stand-ins for tensors and sizes that networks see while it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bridle_exporters.onnx_graphs.weights_file import NAME, WeightsFile

IR_VERSION = 10
INLINE_BYTES = 1024
"""Constants up to this size are part of the graph: shape inference reads them."""

_ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}
Sizes = tuple[int | str, ...]


class Graph:
    """Nodes, weights, inputs and outputs. A node that is there already is not written again.

    dtype: of all floating point weights. names: of tensors, by their id.
    """

    def __init__(self, dtype: torch.dtype, weights: Mapping[str, Tensor], file: WeightsFile) -> None:
        self.dtype = dtype
        self._names = {id(tensor): name for name, tensor in weights.items()}
        self._file = file
        self._nodes: list[Any] = []
        self._made: dict[Any, tuple[str, ...]] = {}
        self._initializers: dict[str, Any] = {}
        self._inputs: dict[str, Any] = {}
        self._outputs: list[Any] = []
        self._kept: list[Tensor] = []
        self.reports: dict[str, tuple[Value, Sizes]] = {}
        """Float32 results on the way, which become outputs after the graph's own."""

    def op(self, kind: str, *inputs: "str | Value | Dim", **attributes: Any) -> "Value":
        """One node with one output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: "str | Value | Dim", **attributes: Any) -> "tuple[Value, ...]":
        """One node with `count` outputs."""
        names = tuple(i if isinstance(i, str) else i.name for i in inputs)
        key = (kind, names, count, repr(sorted(attributes.items())))
        if key not in self._made:
            number = len(self._nodes)
            outputs = tuple(f"{kind}.{number}" if count == 1 else f"{kind}.{number}.{i}" for i in range(count))
            self._nodes.append(
                helper.make_node(kind, list(names), list(outputs), name=f"{kind}.{number}", **attributes)
            )
            self._made[key] = outputs
        return tuple(Value(self, name) for name in self._made[key])

    def input(self, name: str, sizes: Sizes, dtype: torch.dtype | None = None) -> "Value":
        """An input that must be given. sizes: numbers, or names of sizes that are free."""
        self._inputs[name] = helper.make_tensor_value_info(name, _ONNX_TYPES[dtype or self.dtype], list(sizes))
        return Value(self, name, sizes=sizes)

    def optional(self, name: str, default: Tensor, sizes: Sizes) -> "Value":
        """An input with a default: an initializer that is an input too. The same name is the same input."""
        if name not in self._inputs:
            default = default.to(self.dtype) if default.is_floating_point() else default
            self._initializers[name] = numpy_helper.from_array(default.numpy(), name)
            self._inputs[name] = helper.make_tensor_value_info(name, _ONNX_TYPES[default.dtype], list(sizes))
        return Value(self, name, sizes=sizes)

    def output(self, name: str, value: "Value", sizes: Sizes, dtype: torch.dtype | None = None) -> None:
        """Names a result of the graph."""
        self._nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, _ONNX_TYPES[dtype or self.dtype], list(sizes)))

    def weight(self, tensor: Tensor, *, transposed: bool = False, per_channel: bool = False) -> str:
        """A weight, or one computed from weights.

        transposed: [Cout, Cin, 1..] as the matrix [Cin, Cout]. per_channel: [C] as [C, 1, 1].
        """
        name = self._names.get(id(tensor))
        if name is None:
            self._kept.append(tensor)
            name = self._names[id(tensor)] = self._file.fresh_name()
        name = f"{name}.T" if transposed else f"{name}.C" if per_channel else name
        if name not in self._initializers:
            values = tensor.detach().to(self.dtype)
            self._store(name, values.flatten(1).T if transposed else values[:, None, None] if per_channel else values)
        return name

    def constant(self, values: Any, dtype: torch.dtype | None = None) -> str:
        """A small constant; floating point ones have the graph's dtype unless one is given."""
        tensor = torch.as_tensor(values, dtype=dtype or (self.dtype if _is_float(values) else torch.int64))
        name = f"constant.{tensor.dtype}.{list(tensor.shape)}.{tensor.flatten().tolist()}".replace("torch.", "")
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(tensor.numpy(), name)
        return name

    def constant_value(self, tensor: Tensor) -> "Value":
        """A constant where a value is wanted: of the graph's dtype, or integers."""
        return Value(self, self.constant(tensor.tolist()))

    def table(self, name: str, tensor: Tensor) -> str:
        """A float32 constant with a name."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(tensor.numpy(), name)
        return name

    def save(self, path: Path, opset: int) -> None:
        """Writes the graph without weights and checks it, types and shapes included."""
        used = {name for node in self._nodes for name in node.input}
        initializers = [t for name, t in self._initializers.items() if name in used or name in self._inputs]
        inputs = list(self._inputs.values())
        graph = helper.make_graph(self._nodes, path.parent.name, inputs, self._outputs, initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name="bridle"
        )
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path), full_check=True)

    def _store(self, name: str, tensor: Tensor) -> None:
        if tensor.numel() * tensor.element_size() <= INLINE_BYTES:
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(tensor.numpy()), name)
            return
        stored = self._file.add(name, tensor)
        proto = TensorProto(name=name, data_type=_ONNX_TYPES[tensor.dtype], dims=list(tensor.shape))
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", NAME), ("offset", stored.offset), ("length", stored.length)):
            proto.external_data.add(key=key, value=str(value))
        self._initializers[name] = proto


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph. heads, width: of tokens [R, N, width] that networks see as [R, N, heads, width / heads].

    stacked: keys or values [R, P, L, heads, d] of P segments. sizes: of an input.
    """

    graph: Graph
    name: str
    heads: int = 1
    width: int = 0
    stacked: bool = False
    sizes: Sizes | None = None

    @property
    def shape(self) -> "Shape":
        """Sizes as networks ask for them."""
        return Shape(self)

    def flatten(self, start_dim: int, end_dim: int) -> "Value":
        """Heads as tokens, [R, N * heads, d], which is the only thing that networks flatten."""
        assert (start_dim, end_dim) == (1, 2)
        return self.graph.op("Reshape", self, self.graph.constant([0, -1, self.width // self.heads]))


class Shape:
    """Sizes of a value: numbers where they are fixed, `Dim` where they are only known when the graph runs."""

    def __init__(self, value: Value) -> None:
        self._value = value

    def __getitem__(self, index: Any) -> Any:
        sizes = self._value.sizes
        if isinstance(index, slice):
            assert sizes is not None
            return tuple(self[i] for i in range(*index.indices(len(sizes))))
        if sizes is not None and isinstance(sizes[index], int):
            return sizes[index]
        end = {} if index == -1 else {"end": index + 1}
        return Dim(self._value.graph, self._value.graph.op("Shape", self._value, start=index, **end).name)


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same row `count` times: `(0,) * count` for a count that is not known yet."""

    row: int
    count: "Dim"


@dataclass(frozen=True, slots=True)
class Dim:
    """A size that is known when the graph runs: the name of an int64 tensor [1]. Division rounds down."""

    graph: Graph
    name: str

    def __neg__(self) -> "Dim":
        return self._made("Neg")

    def __floordiv__(self, other: int) -> "Dim":
        if other == 1:
            return self
        divisor = self.graph.constant([other])
        rest = self._made("Mod", divisor)
        return self._made("Sub", rest)._made("Div", divisor)

    def __mul__(self, other: int) -> "Dim":
        return self._made("Mul", self.graph.constant([other]))

    def __rmul__(self, other: Any) -> Any:
        if isinstance(other, tuple):
            (row,) = other
            return Repeat(row, self)
        return self * other

    def _made(self, kind: str, *others: "str | Dim") -> "Dim":
        return Dim(self.graph, self.graph.op(kind, self, *others).name)


def _is_float(values: Any) -> bool:
    while isinstance(values, Sequence):
        if not values:
            return False
        values = values[0]
    return isinstance(values, float)
