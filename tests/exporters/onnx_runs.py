"""Graphs written to a folder and run by ONNX Runtime on PyTorch tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from bridle_exporters.onnx_graphs import variants
from bridle_exporters.onnx_graphs.graph import Graph
from bridle_exporters.onnx_graphs.weights_file import WeightsFile


def save(
    folder: Path, weights: Mapping[str, Tensor], write: Callable[[Graph], None], dtype: torch.dtype = torch.float32
) -> Path:
    """The base graph of `write`, with its variants beside it."""
    with WeightsFile(folder) as file:
        graph = Graph(dtype, weights, file)
        write(graph)
        graph.save(folder / "model.onnx", 23)
    variants.write(folder, "model")
    return folder / "model.onnx"


def variants_of(path: Path) -> list[Path]:
    """A base graph and the files that were derived from it."""
    return [path, *sorted(path.parent.glob(f"{path.stem}.*.onnx"))]


class Session:
    """A graph that takes and gives tensors."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        self.required = [i.name for i in self.session.get_inputs()]
        self.optional = [i.name for i in self.session.get_overridable_initializers()]

    def __call__(self, **feeds: Tensor) -> dict[str, Tensor]:
        found = self.session.run(None, {name: np.asarray(tensor) for name, tensor in feeds.items()})
        return {name: torch.from_numpy(np.asarray(array)) for name, array in zip(self.names, found, strict=True)}


def assert_equal(got: Tensor, wanted: Tensor) -> None:
    """The tolerance of exported graphs in float32."""
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
