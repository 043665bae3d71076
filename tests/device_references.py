"""References and peers on the device under test: what a GPU does in milliseconds takes minutes on the CPU beside it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """PyTorch without TF32 and without sums in half precision; with algorithms that repeat their bits, where it has them.

    float64 means the same on every device. The settings are for peers, whose error the acceptance rule takes as its measure.
    """
    matmul = torch.backends.cuda.matmul
    tf32 = matmul.allow_tf32
    reduced = (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction)
    repeating = torch.get_deterministic_debug_mode()
    matmul.allow_tf32 = False
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
    try:
        torch.set_deterministic_debug_mode("warn")
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        torch.set_deterministic_debug_mode(repeating)
        matmul.allow_tf32 = tf32
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = reduced
