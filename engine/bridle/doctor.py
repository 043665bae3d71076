"""What this computer has, and which backend serves which feature here and why not."""

import os
import platform
from collections.abc import Iterator

import torch

import bridle
from bridle.backends.choose import BACKENDS, automatic, choose_device, choose_dtype, unavailable, unserved
from bridle.backends.onnx_runtime import options
from bridle.engine import POCKET
from bridle.rows import Primitive


def report() -> Iterator[str]:
    """Lines for a person to read."""
    yield f"bridle {bridle.__version__}, Python {platform.python_version()}, PyTorch {torch.__version__}"
    yield f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads, PyTorch uses {_torch_isa()}"
    yield f"native ops: {_native_ops()}"
    yield f"ONNX Runtime: {_onnx_runtime()}"
    yield from _gpus()
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    yield f"device auto: {device}, dtype auto: {str(dtype).removeprefix('torch.')}"
    present = (POCKET / "model_index.json").is_file()
    yield f"default model: {'in the package' if present else 'none in this installation'}"
    yield f"backend auto: {automatic(device, dtype)}"
    for name in BACKENDS:
        yield from _backend(name)


def _backend(name: str) -> Iterator[str]:
    reason = unavailable(name)
    yield f"backend {name}: {reason or 'available'}"
    if reason is not None:
        return
    for primitive in Primitive:
        yield f"  {primitive.value}: {unserved(name, primitive) or 'served'}"


def _torch_isa() -> str:
    isa: str = torch.backends.cpu.get_cpu_capability()
    return isa


def _native_ops() -> str:
    """The variant in use; a build that is missing and a BRIDLE_FORCE_ISA that cannot be served are said, not raised."""
    try:
        from bridle_kernels import _core

        return f"{_core.active_isa()}, of {', '.join(_core.available_isas())}"
    except (ImportError, ValueError) as problem:
        return f"not usable: {problem}"


def _onnx_runtime() -> str:
    reason = options.unavailable()
    return reason or f"{options.ort_version()}, providers {options.listed_providers()}"


def _gpus() -> Iterator[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        yield "GPU: PyTorch sees none"
    for index in range(count):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield f"GPU {index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
