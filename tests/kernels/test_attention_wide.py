"""Attention of head dimensions above the fused GPU kernel's: PyTorch's own operations, so the checks of a GPU run here too."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from gpu_attention_checks import DTYPES, WIDE, wide_heads


@pytest.mark.parametrize("hides", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("size", WIDE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_acceptance(dtype: torch.dtype, size: tuple[int, int, int], hides: bool) -> None:
    wide_heads(size, dtype, hides, "cpu")
