"""Networks recorded into plans of the C++ core, and their evaluation without Python.

A network is run once on tensors without memory (PyTorch's "meta" device): views and shapes work as always, every kernel
becomes a node of the plan, and a tensor's storage says which buffer it lies in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.attention import Segment, native
from bridle_kernels.executor import residual_term
from bridle_kernels.packed_weights import storage_of
from bridle_kernels.residual_add import ResidualTerm


class NotRecordableError(Exception):
    """The network does something that no kernel of the core does."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of every frame. layout: on "meta", where it lies in the buffer."""

    buffer: int
    bytes: int
    layout: Tensor

    def view(self, frame: "_core.Frame") -> Tensor:
        """The tensor in a frame's memory."""
        flat = torch.from_numpy(frame.memory(self.buffer, self.bytes)).view(self.layout.dtype)
        return flat.as_strided(self.layout.shape, self.layout.stride(), self.layout.storage_offset())


@dataclass(frozen=True, slots=True)
class Port:
    """A node whose operands are bound: its number, the tensor that it works on, and that tensor's layout in the plan."""

    number: int
    tensor: Tensor
    place: "_core.PlanTensor"


@dataclass(slots=True)
class Program:
    """A finished plan and what its inputs, outputs and ports are called.

    matrices: that its products read, some of them more than once. keeps: what its constants point to.
    """

    plan: "_core.Plan"
    inputs: dict[str, Slot] = field(default_factory=dict)
    outputs: tuple[Slot, ...] = ()
    attentions: dict[str, Port] = field(default_factory=dict)
    residuals: dict[str, Port] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    matrices: "list[_core.PackedWeights]" = field(default_factory=list)
    keeps: list[Any] = field(default_factory=list)


class Recorder:
    """An `Executor` that writes a program. Tensors that it gives out have no values.

    values: of weights that have none, by any view of them; None for what is no weight. stored: the same before they are
    converted.
    """

    def __init__(
        self,
        values: Callable[[Tensor], Tensor | None] = lambda _: None,
        stored: Callable[[Tensor], Tensor | None] = lambda _: None,
    ) -> None:
        self._values = values
        self._stored = stored
        self._plan = _core.Plan()
        self._program = Program(self._plan)
        self._buffers: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._own_rows = self._plan.add_row_port()

    def input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """What is written before a run; an image [R, C, h, w] has its channels last."""
        last = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        tensor = torch.empty(tuple(shape), dtype=dtype, device="meta", memory_format=last)
        buffer = self._plan.add_input(_bytes(tensor))
        self._register(tensor, buffer)
        self._program.inputs[name] = Slot(buffer, _bytes(tensor), tensor)
        return tensor

    def named(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A stand-in for operands that are bound under a name: keys and values, values of residuals, row numbers."""
        tensor = torch.empty(tuple(shape), dtype=dtype, device="meta")
        self._names[storage_of(tensor)] = name
        self._program.keeps.append(tensor)
        return tensor

    def keep(self, owner: object) -> None:
        """Lets something live as long as the program."""
        self._program.keeps.append(owner)

    def finish(self, outputs: Sequence[Tensor]) -> Program:
        """The program; its outputs can be read after every run."""
        for tensor in outputs:
            buffer = self._buffer(tensor)
            self._plan.keep(buffer)
            size = tensor.untyped_storage().nbytes()
            self._program.outputs += (Slot(buffer, size, tensor),)
        self._plan.finish()
        return self._program

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """See `Executor`, as all below."""
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        self._register(tensor, self._plan.add_buffer(_bytes(tensor)))
        return tensor

    def linear(self, weights: "_core.PackedWeights", x: Tensor, out: Tensor, **options: Any) -> None:
        self._program.matrices.append(weights)
        self._plan.linear(weights, self._place(x), self._place(out), **self._places(options))

    def conv2d(self, weights: "_core.PackedWeights", sources: Sequence[Tensor], out: Tensor, **options: Any) -> None:
        self._program.matrices.append(weights)
        self._plan.conv2d(weights, [self._place(s) for s in sources], self._place(out), **self._places(options))

    def upsampled_conv2d(
        self, phases: Sequence["_core.PackedWeights"], sources: Sequence[Tensor], out: Tensor, **options: Any
    ) -> None:
        self._program.matrices.extend(phases)
        places = [self._place(source) for source in sources]
        self._plan.upsampled_conv2d(phases, places, self._place(out), **self._places(options))

    def group_norm(self, sources: Sequence[Tensor], out: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> None:
        if options.pop("scale") is not None or options.pop("shift") is not None:
            raise NotRecordableError("a group norm with a second condition")
        places = [self._place(source) for source in sources]
        self._plan.group_norm(places, self._place(out), self._place(weight), self._place(bias), **options)

    def layer_norm(self, x: Tensor, out: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> None:
        self._plan.layer_norm(self._place(x), self._place(out), self._place(weight), self._place(bias), eps=eps)

    def attention(
        self, q: Tensor, segments: Sequence[Segment], gate: float | Tensor | None, out: Tensor | None, **options: Any
    ) -> Tensor:
        if gate is not None or out is not None:
            raise NotRecordableError("an attention with a gate, or that adds to a tensor")
        if options["scale"] is None:
            options["scale"] = q.shape[3] ** -0.5
        result = self.empty(q.shape[0], q.shape[1], q.shape[2] * q.shape[3], dtype=q.dtype)
        name = self._names.get(storage_of(segments[0].pieces[0].k))
        if name is None:
            self._own_attention(q, segments, result, options)
        else:
            place = self._place(q)
            del options["causal"]
            self._program.attentions[name] = Port(
                self._plan.bound_attention(place, self._place(result), **options), q, place
            )
        return result

    def residual_add(self, x: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor:
        name = self._names.get(storage_of(residuals[0].values))
        if name is None:
            raise NotRecordableError("residuals that are not bound")
        place = self._place(x.flatten(1, 2))
        self._program.residuals[name] = Port(self._plan.residual_add(place), x, place)
        return x

    def average_pool(self, x: Tensor, out: Tensor) -> None:
        self._plan.average_pool(self._place(x), self._place(out))

    def area_pool(self, x: Tensor, out: Tensor) -> None:
        self._plan.area_pool(self._place(x), self._place(out))

    def copy(self, x: Tensor, out: Tensor) -> None:
        self._plan.copy(self._place(x), self._place(out))

    def pointwise(self, x: Tensor, out: Tensor, *, scale: float, shift: float, activation: str) -> None:
        self._plan.pointwise(self._place(x), self._place(out), scale=scale, shift=shift, activation=activation)

    def time_embedding(self, t: Tensor, frequencies: Tensor, out: Tensor, *, cosines_first: bool) -> None:
        places = [self._place(tensor) for tensor in (t, frequencies, out)]
        self._plan.time_embedding(*places, cosines_first=cosines_first)

    def embedding(self, ids: Tensor, tokens: Tensor, positions: Tensor, out: Tensor) -> None:
        places = [self._place(tensor) for tensor in (ids, self._table(tokens), positions, out)]
        self._plan.embedding(*places)

    def end_token(self, x: Tensor, ids: Tensor, out: Tensor, *, end: int | None) -> None:
        self._plan.end_token(self._place(x), self._place(ids), self._place(out), end=end)

    def _own_attention(self, q: Tensor, segments: Sequence[Segment], out: Tensor, options: Mapping[str, Any]) -> None:
        (segment,) = segments
        port = self._own_rows
        if segment.q_rows is not None:
            name = self._names[storage_of(segment.q_rows)]
            if name not in self._program.rows:
                self._program.rows[name] = self._plan.add_row_port()
            port = self._program.rows[name]
        keys = [self._place(piece.k) for piece in segment.pieces]
        values = [self._place(piece.v) for piece in segment.pieces]
        self._plan.own_attention(self._place(q), keys, values, self._place(out), row_port=port, **options)

    def _register(self, tensor: Tensor, buffer: int) -> None:
        self._buffers[storage_of(tensor)] = buffer
        # The storage of a tensor that is gone may be another's.
        self._program.keeps.append(tensor)

    def _buffer(self, tensor: Tensor) -> int:
        found = self._buffers.get(storage_of(tensor))
        if found is not None:
            return found
        if tensor.device.type != "meta":
            return self._constant(tensor, tensor.untyped_storage().data_ptr())
        values = self._values(tensor)
        if values is None:
            raise NotRecordableError("an operation that no kernel of the core does")
        self.keep(values)
        return self._constant(tensor, values.data_ptr())

    def _table(self, tokens: Tensor) -> Tensor:
        """The table itself, or what of it is stored in float32: the kernel converts the rows that it reads."""
        stored = self._stored(tokens)
        if stored is None or stored.dtype != torch.float32 or stored.shape != tokens.shape:
            return tokens
        return stored

    def _constant(self, tensor: Tensor, address: int) -> int:
        """The buffer of a tensor whose storage begins at an address."""
        buffer = self._plan.add_constant(address)
        self._register(tensor, buffer)
        return buffer

    def _place(self, tensor: Tensor) -> "_core.PlanTensor":
        offset = int(tensor.storage_offset()) * tensor.element_size()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return _core.PlanTensor(self._buffer(tensor), offset, dtype, list(tensor.shape), list(tensor.stride()))

    def _places(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._place(v) if isinstance(v, Tensor) else v for name, v in options.items()}


class ProgramFrame:
    """Memory for one evaluation of a program at a time. inputs, outputs: tensors in that memory.

    context: what the caller last bound the attentions from; it may bind once what stays the same.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._frame = _core.Frame(program.plan)
        # Tensors that are made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            self.inputs = {name: slot.view(self._frame) for name, slot in program.inputs.items()}
            self.outputs = tuple(slot.view(self._frame) for slot in program.outputs)
        self._bound: dict[str, object] = {}
        self.context: tuple[object, ...] = ()

    @property
    def matrices(self) -> "Sequence[_core.PackedWeights]":
        """See `Program`."""
        return self._program.matrices

    @property
    def plan(self) -> "_core.Plan":
        """What it evaluates."""
        return self._program.plan

    @property
    def bytes(self) -> int:
        """What it holds: the plan's arena, and keys and values as they are packed."""
        return self._frame.bytes

    def bind_segments(self, name: str, segments: Sequence[Segment]) -> None:
        """What an attention attends to from now on."""
        port = self._program.attentions[name]
        found = native.segment_operands(segments, port.tensor)
        self._frame.bind_segments(port.number, found, port.place)
        self._bound[name] = found

    def bind_residuals(self, name: str, residuals: Sequence[ResidualTerm]) -> None:
        """What is added at a point from now on."""
        if not residuals and not self._bound.get(name):
            return
        port = self._program.residuals[name]
        found = [residual_term(residual, port.tensor) for residual in residuals]
        self._frame.bind_residuals(port.number, found, port.place)
        self._bound[name] = found

    def bind_rows(self, name: str, rows: Sequence[int]) -> None:
        """The rows whose maps the self-attentions of a level read from now on."""
        self._frame.bind_rows(self._program.rows[name], list(rows))

    def run(self, pool: "_core.ThreadPool") -> None:
        """Computes the outputs."""
        self._frame.run(pool)

    def profile(self, pool: "_core.ThreadPool") -> list[tuple[str, float]]:
        """A run, with each op's name and seconds."""
        return list(zip(self.plan.nodes, self._frame.profile(pool), strict=True))


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
