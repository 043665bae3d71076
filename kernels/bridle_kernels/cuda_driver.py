"""The part of the CUDA driver that starts kernels of a bundle."""

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import torch

_MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
_STATIC_LIMIT = 48 << 10
"""Bytes of shared memory that a kernel has without asking."""
_THREADS_PER_WARP = 32

Value = ctypes.c_void_p | ctypes.c_int32 | ctypes.c_int64 | ctypes.c_float


class DriverError(RuntimeError):
    """A call of the CUDA driver failed. call: its name. code: its CUresult."""

    def __init__(self, call: str, code: int) -> None:
        self.call = call
        self.code = code
        super().__init__(f"{call} failed with CUDA error {code}")


class Driver(Protocol):
    """What a bundle needs of a GPU."""

    def device(self) -> int:
        """Index of the current device."""

    def architecture(self) -> int:
        """Its compute capability, times ten."""

    def load(self, cubin: bytes, symbol: str, shared_bytes: int) -> Any:
        """A kernel on the current device."""

    def start(self, kernel: Any, grid: Sequence[int], warps: int, shared_bytes: int, values: Sequence[Value]) -> None:
        """Starts a kernel on PyTorch's current stream."""


class CudaDriver:
    """libcuda, called by its C interface. PyTorch owns the contexts and streams. library: for tests, another one."""

    def __init__(self, library: Any = None) -> None:
        self._library = ctypes.CDLL("libcuda.so.1") if library is None else library

    def device(self) -> int:
        """See `Driver`."""
        return torch.cuda.current_device()

    def architecture(self) -> int:
        """See `Driver`."""
        major, minor = torch.cuda.get_device_capability()
        return 10 * major + minor

    def stream(self) -> int:
        """The handle of PyTorch's current stream."""
        return int(torch.cuda.current_stream().cuda_stream)

    def load(self, cubin: bytes, symbol: str, shared_bytes: int) -> ctypes.c_void_p:
        """See `Driver`. Modules stay loaded as long as their context. Raises DriverError."""
        self._make_current()
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(cubin))
        self._call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(symbol.encode()))
        if shared_bytes > _STATIC_LIMIT:
            self._call("cuFuncSetAttribute", function, ctypes.c_int(_MAX_DYNAMIC_SHARED), ctypes.c_int(shared_bytes))
        return function

    def start(self, kernel: Any, grid: Sequence[int], warps: int, shared_bytes: int, values: Sequence[Value]) -> None:
        """See `Driver`. Raises DriverError."""
        x, y, z = (*grid, 1, 1)[:3]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        sizes = (x, y, z, warps * _THREADS_PER_WARP, 1, 1, shared_bytes)
        stream = ctypes.c_void_p(self.stream())
        self._call("cuLaunchKernel", kernel, *(ctypes.c_uint(n) for n in sizes), stream, addresses, ctypes.c_void_p())

    def _make_current(self) -> None:
        """PyTorch's context becomes the thread's, which it is once the thread has asked for memory."""
        torch.empty(1, device="cuda")

    def _call(self, name: str, *arguments: Any) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code:
            raise DriverError(name, code)
