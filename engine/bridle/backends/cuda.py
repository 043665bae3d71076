"""The CUDA backend: the networks over Triton kernels, cuDNN and cuBLAS; a U-Net and its ControlNets are one CUDA graph."""

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.backends.static_rows import StaticRows, described, with_tensors
from bridle.rows import Rows
from bridle.weights import Model

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels compute in."""
PROGRAMS = 8
"""Kinds of rows that are kept, each with the memory of its activations."""
WARM_UP = 2
"""Evaluations before a capture: kernels are compiled and algorithms are chosen in them."""

Compute = Callable[[Rows], Tensor]


class Program:
    """One kind of rows: every tensor that it reads and writes has its own place. Evaluated without a graph."""

    def __init__(self, rows: Rows, compute: Compute) -> None:
        self._static = StaticRows(rows)
        self._compute = compute

    def run(self, rows: Rows) -> Tensor:
        """The model outputs [R, C, h, w] of rows of the same description."""
        self._static.bind(rows)
        out = self.evaluate()
        self._static.hand_out(rows)
        return out

    def evaluate(self) -> Tensor:
        """Those of the bound rows."""
        return self._compute(self._static.rows)


class CapturedProgram(Program):
    """The same, captured once and replayed."""

    def __init__(self, rows: Rows, compute: Compute) -> None:
        super().__init__(rows, compute)
        side: Any = torch.cuda.Stream(rows.sample.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                super().evaluate()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = super().evaluate()

    def evaluate(self) -> Tensor:
        """See `Program.evaluate`."""
        self._graph.replay()
        return self._out.clone()


class CudaBackend(ReferenceBackend):
    """Serves every primitive of the reference on one CUDA device, in float16, bfloat16 and float32. Thread-safe.

    A graph is captured for every size, number of rows and set of features; strengths, prompts, maps, residuals and time
    steps are data that is copied to it.
    """

    name = "cuda"

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        # Triton takes a second to import, which other backends need not wait for.
        from bridle_kernels.triton_ops import TritonOps

        super().__init__(model, device, dtype, TritonOps())
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._lock = threading.Lock()
        for component in (model.unet, model.vae):
            keep_channels_last(component.tensors)

    @staticmethod
    def unavailable() -> str | None:
        """None, or why it cannot be used in this installation."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        return None if torch.cuda.is_available() else "PyTorch sees no GPU here"

    @staticmethod
    def runs_on(device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or the reason why it cannot compute on a device in a dtype."""
        if device.type != "cuda":
            return f"it runs on CUDA devices, not on {device}"
        if dtype not in DTYPES:
            return f"it computes in float32, float16 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
        return None

    def evaluate(self, rows: Rows) -> Tensor:
        """Model outputs [R, C, h, w]. Raises UnsupportedError for a primitive that is not served."""
        self.refuse_unserved(rows)
        rows = with_tensors(rows)
        with self._lock:
            return self._program(rows).run(rows)

    def _program(self, rows: Rows) -> Program:
        key = described(rows)
        if key not in self._programs:
            for branch in rows.branches:
                keep_channels_last(branch.weights)
            self._programs[key] = self.make_program(rows)
        self._programs.move_to_end(key)
        while len(self._programs) > PROGRAMS:
            self._programs.popitem(last=False)
        return self._programs[key]

    def make_program(self, rows: Rows) -> Program:
        """Captures rows."""
        return CapturedProgram(rows, self.compute)

    def compute(self, rows: Rows) -> Tensor:
        """Evaluates rows op by op."""
        return super().evaluate(rows)


def keep_channels_last(tensors: Mapping[str, Tensor]) -> None:
    """Lays out the weights of convolutions in place with their input channels last, which cuDNN then need not do."""
    for tensor in tensors.values():
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
