"""The CPU backend: the networks over the C++ core."""

import torch

from bridle.backends.reference import ReferenceBackend
from bridle.weights import Model
from bridle_kernels.native_ops import NativeOps


class CpuBackend(ReferenceBackend):
    """Serves every primitive of the reference, on CPU tensors of float32 and bfloat16."""

    name = "cpu"

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(model, device, dtype, NativeOps(torch.get_num_threads()))
