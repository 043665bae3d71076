"""Which backend serves a model on a device."""

import logging
from collections.abc import Mapping

import torch

from bridle.backends.cpu import CpuBackend
from bridle.backends.cuda import CudaBackend
from bridle.backends.onnx_runtime.options import OrtOptions
from bridle.backends.ort import OrtBackend
from bridle.backends.reference import ReferenceBackend
from bridle.errors import RequestError, UnsupportedError
from bridle.rows import Primitive
from bridle.weights import Model

_log = logging.getLogger("bridle")

BACKENDS = ("cuda", "ort", "cpu", "reference")
"""Order in which "auto" tries them."""

_CLASSES: Mapping[str, type[ReferenceBackend]] = {
    "cuda": CudaBackend,
    "ort": OrtBackend,
    "cpu": CpuBackend,
    "reference": ReferenceBackend,
}


def unavailable(name: str) -> str | None:
    """None, or why a backend cannot be used here."""
    if name not in _CLASSES:
        return "this version of bridle has no implementation of it"
    return _CLASSES[name].unavailable()


def unfit(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None, or why a backend cannot run on a device with a dtype."""
    return unavailable(name) or _CLASSES[name].runs_on(device, dtype)


def automatic(device: torch.device, dtype: torch.dtype) -> str:
    """What "auto" means."""
    return next(name for name in BACKENDS if unfit(name, device, dtype) is None and _CLASSES[name].suits(dtype))


def unserved(name: str, primitive: Primitive) -> str | None:
    """None, or why a backend does not serve a primitive here."""
    return unavailable(name) or _CLASSES[name].supports(frozenset({primitive}))


def choose_backend(
    name: str,
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    options: OrtOptions | None = None,
    *,
    deterministic: bool = False,
    memory_budget: int | None = None,
) -> ReferenceBackend:
    """The named backend, or the first that is available for "auto"; graphs in the place of weights leave only "ort".

    options: of "ort". deterministic: it evaluates every image alone, see `sampler.Evaluator`. memory_budget: bytes, of "cuda"
    alone; the model is then in the computer's memory. Raises RequestError, UnsupportedError, ModelLoadError and
    MemoryBudgetError.
    """
    check_name(name)
    if name == "auto":
        name = "ort" if model.exported else automatic(device, dtype)
        _log.info("backend: %s", name)
    reason = unfit(name, device, dtype)
    if reason is None and model.exported and name != "ort":
        reason = "the folder holds exported graphs and no weights; backend='ort' runs them"
    if reason is not None:
        raise UnsupportedError("this model", name, reason)
    if memory_budget is not None and name != "cuda":
        raise UnsupportedError("memory_budget", name, "only the memory that 'cuda' takes on a GPU is counted")
    if name == "ort":
        return OrtBackend(model, device, dtype, options, alone=deterministic)
    if options is not None:
        raise RequestError("ort", "options", f"None: the backend is '{name}'")
    if name == "cuda":
        return CudaBackend(model, device, dtype, alone=deterministic, memory_budget=memory_budget)
    return _CLASSES[name](model, device, dtype, alone=deterministic)


def check_name(name: str) -> None:
    """Raises RequestError for a backend that does not exist."""
    if name != "auto" and name not in BACKENDS:
        raise RequestError("backend", name, "one of 'auto', " + ", ".join(repr(b) for b in BACKENDS))


def choose_device(device: str) -> torch.device:
    """ "auto" is the GPU if PyTorch sees one, else the CPU. Raises RequestError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as problem:
        raise RequestError("device", device, "'auto', 'cpu', 'cuda' or 'cuda:N'") from problem
    if chosen.type == "meta":
        raise RequestError("device", device, "a device that holds values")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RequestError("device", device, "'cpu': PyTorch sees no GPU here")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise RequestError("device", device, f"one of {torch.cuda.device_count()} GPUs")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto" is float16 on a GPU and float32 on a CPU. Raises RequestError."""
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    chosen = names.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in names.values():
        raise RequestError("dtype", str(dtype), "'auto', 'float32', 'float16' or 'bfloat16'")
    return chosen
