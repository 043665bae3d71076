"""One graph in ONNX Runtime: inputs and outputs are bound where they lie."""

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bridle.backends.onnx_runtime import element_types
from bridle.backends.onnx_runtime.graph_file import GraphFile
from bridle.backends.onnx_runtime.mapped_weights import MappedWeights
from bridle.backends.onnx_runtime.options import OrtOptions
from bridle.errors import ModelLoadError

_log = logging.getLogger("bridle")

Shape = tuple[int, ...]

SLOW_BYTES = 256 * 1024 * 1024
"""Graphs with more weights than this are announced before they are prepared."""

_ERRORS = 3
"""ONNX Runtime's level of messages: it warns of every optional input."""

_pool_lock = threading.Lock()


class Session:
    """A checked graph, ready to run. Thread-safe."""

    def __init__(self, graph: GraphFile, options: OrtOptions, device: torch.device, weights: MappedWeights) -> None:
        self.graph = graph
        self._device = device
        provider = options.provider_on(device)
        _announce(graph, options, provider, device)
        settings = _settings(options)
        if provider == "cpu":
            self._weights = weights
            weights.give(graph, settings)
        providers = options.provider_list(provider, device, graph.path.parent.name)
        self._session = _create(graph, settings, providers)

    def run(self, feeds: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """The outputs that `shapes` names, in new tensors of those shapes on the session's device.

        feeds: every input without a default, converted to its type where they have another. Raises ValueError where the
        graph gives an output of another shape.
        """
        binding = self._session.io_binding()
        held = [self._bind_input(binding, name, values) for name, values in feeds.items()]
        outputs = {name: self._bind_output(binding, name, shape) for name, shape in shapes.items()}
        self._run_bound(binding)
        del held
        return outputs

    def run_once(self, feeds: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs by name on the session's device, in ONNX Runtime's own memory, for graphs that run once per request: the
        shapes need not be known. See `run`."""
        binding = self._session.io_binding()
        held = [self._bind_input(binding, name, values) for name, values in feeds.items()]
        for name in names:
            binding.bind_output(name, self._device.type, self._device.index or 0)
        self._run_bound(binding)
        del held
        found = (torch.utils.dlpack.from_dlpack(value) for value in binding.get_outputs())
        return dict(zip(names, found, strict=True))

    def _run_bound(self, binding: Any) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as problem:  # whatever type ONNX Runtime raises
            raise ValueError(f"{self.graph.label}: {str(problem)[-300:]}") from problem

    def _bind_input(self, binding: Any, name: str, values: Tensor) -> Tensor:
        given = self.graph.inputs[name]
        held = values.to(self._device, element_types.TORCH[given.type]).contiguous()
        self._bind(binding.bind_input, name, given.type, held)
        return held

    def _bind_output(self, binding: Any, name: str, shape: Shape) -> Tensor:
        given = self.graph.outputs[name]
        buffer = torch.empty(shape, dtype=element_types.TORCH[given.type], device=self._device)
        self._bind(binding.bind_output, name, given.type, buffer)
        return buffer

    def _bind(self, bind: Any, name: str, kind: str, tensor: Tensor) -> None:
        bind(
            name=name,
            device_type=self._device.type,
            device_id=self._device.index or 0,
            element_type=element_types.CODES[kind],
            shape=tuple(tensor.shape),
            buffer_ptr=tensor.data_ptr(),
        )


def _settings(options: OrtOptions) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS
    threads = options.threads or torch.get_num_threads()
    if options.shared_pool:
        _share_pool(threads)
        settings.use_per_session_threads = False
    else:
        settings.intra_op_num_threads = threads
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    return settings


def _announce(graph: GraphFile, options: OrtOptions, provider: str, device: torch.device) -> None:
    size = graph.weight_bytes / 2**20
    if provider == "tensorrt":
        folder = options.engine_folder(device) / graph.path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        _log.warning(
            "%s: TensorRT builds an engine for every new range of sizes, expect minutes; kept in %s",
            graph.label,
            folder,
        )
    elif graph.weight_bytes > SLOW_BYTES:
        _log.info("%s: preparing %.0f MiB of weights, some seconds", graph.label, size)


def _share_pool(threads: int) -> None:
    """One pool for all sessions of the process; the first one decides its size."""
    import onnxruntime

    with _pool_lock:
        try:
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
        except Exception as problem:  # ONNX Runtime's own type: the pool is there already
            _log.debug("ONNX Runtime's threads: %s", problem)


def _create(graph: GraphFile, settings: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(graph.path), settings, providers=providers, enable_fallback=0)
    except Exception as problem:  # a native parser of files from outside: any type
        raise ModelLoadError(graph.label, f"ONNX Runtime refuses it: {str(problem)[-300:]}") from problem
