"""Weights of graphs as they lie in their files: mapped once, and given to every session that reads them."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from bridle.backends.onnx_runtime.graph_file import ExternalTensor, GraphFile, mapped
from bridle.errors import ModelLoadError


class MappedWeights:
    """The files of one model. Thread-safe. Nothing is copied: processes with the same files share the memory."""

    def __init__(self) -> None:
        self._files: dict[Path, memoryview] = {}
        self._values: dict[tuple[Path, ExternalTensor], Any] = {}
        self._arrays: list[Any] = []
        self._lock = threading.Lock()

    def give(self, graph: GraphFile, settings: Any) -> None:
        """Adds a graph's external weights to the options of its session. bfloat16, which NumPy lacks, is left to the file."""
        with self._lock:
            for tensor in graph.external:
                if tensor.type != "bfloat16":
                    settings.add_initializer(tensor.name, self._value(graph, tensor))

    def _value(self, graph: GraphFile, tensor: ExternalTensor) -> Any:
        import onnxruntime

        key = (graph.data, tensor)
        if key not in self._values:
            if graph.data not in self._files:
                self._files[graph.data] = mapped(graph.data)
            content = self._files[graph.data][tensor.offset : tensor.offset + tensor.length]
            if len(content) != tensor.length:
                raise ModelLoadError(graph.label, "the file of its weights has become shorter", tensor.name[:120])
            array = np.frombuffer(content, np.dtype(tensor.type)).reshape(tensor.dims)
            self._arrays.append(array)
            self._values[key] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        return self._values[key]
