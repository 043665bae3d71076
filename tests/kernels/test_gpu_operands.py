"""What PyTorch computes around the GPU kernels of attention, without a GPU: the kernels themselves are not started."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from attention_cases import D, H, N, R, cases, rand
from gpu_attention_checks import moved

from bridle_kernels.attention import MassShift, Piece, Segment, gpu
from bridle_kernels.attention.gpu_operands import gpu_segment
from bridle_kernels.triton_launch import Launch

ATOMIC = ("scatter_add", "scatter_reduce", "index_add", "index_reduce", "index_put", "bincount", "histc", "put_")
"""Operations that PyTorch does with atomics on a GPU, in an order that differs between runs."""


class Named(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def test_no_sum_is_atomic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launch, "compile_and_run", lambda launch: None)
    q = rand(77, R, N, H, D).float()
    with Named() as seen:
        for name in ("everything", "mass, number", "capture twice"):
            gpu.attention(q, moved(cases()[name], lambda t: t.float() if t.is_floating_point() else t))
    assert {"where", "einsum", "bmm"} & seen.names, "the control: something was noted"
    assert not [name for name in seen.names if name.startswith(ATOMIC)]


def test_three_shifts_of_one_column_are_added() -> None:
    k, window = torch.zeros(1, 5, 1, 8), torch.zeros(1, 1, 3)
    mass = MassShift(torch.tensor([[2, -1, 2, 4, 2]]), torch.tensor([[0.5, 9.0, 0.25, 0.75, 0.125]]), window)
    shift = gpu_segment(torch.zeros(1, 3, 1, 8), Segment((Piece(k, k),), mass=mass), False).shift
    assert shift is not None and shift.keep.tolist() == [[1.0, 1.0, 0.125, 1.0, 0.25]]
