"""The CPU backend: the networks over the C++ core."""

import torch

from bridle.backends.reference import ReferenceBackend
from bridle.weights import Model
from bridle_kernels.attention.native import DTYPES
from bridle_kernels.native_ops import NativeOps


class CpuBackend(ReferenceBackend):
    """Serves every primitive of the reference, on CPU tensors of float32 and bfloat16."""

    name = "cpu"

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(model, device, dtype, NativeOps(torch.get_num_threads()))

    @staticmethod
    def runs_on(device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or the reason why it cannot compute on a device in a dtype."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device}"
        if dtype not in DTYPES:
            return f"it computes in float32 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
        return None
