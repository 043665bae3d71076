"""Kernels of `bridle export-kernels` and results of `bridle tune-kernels` for the GPU of an engine."""

from pathlib import Path

import torch

from bridle.errors import ModelLoadError, RequestError


def use_kernels(folder: Path, device: torch.device) -> None:
    """Kernels are started from a folder from now on, in the whole process. Raises ModelLoadError and RequestError."""
    if device.type != "cuda":
        raise RequestError("kernels", str(folder), f"device 'cuda': {device} starts no GPU kernels")
    from bridle_kernels.cuda_driver import CudaDriver
    from bridle_kernels.kernel_bundle import KernelBundle, KernelBundleError
    from bridle_kernels.triton_launch import serve_from

    try:
        with torch.cuda.device(device):
            serve_from(KernelBundle(folder, CudaDriver()))
    except KernelBundleError as problem:
        raise ModelLoadError(problem.file, problem.problem) from problem


def use_tuning(file: Path) -> None:
    """Launches of this process look up a file from now on. Raises ModelLoadError."""
    from bridle_kernels.tuning import TuningError, read, use

    try:
        use(read(file))
    except TuningError as problem:
        raise ModelLoadError(problem.file, problem.problem) from problem
