"""A training step as a CUDA graph: one launch instead of the thousands that a small network's kernels need."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARMUP_RUNS = 3


def record(compute: Callable[[float], Tensor]) -> Callable[[float], Tensor]:
    """Replays one call of `compute`, whose argument must not matter; results lie in the memory of the recorded call.

    The first runs happen beside the recording, so that libraries have chosen their kernels and tables are on the GPU.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP_RUNS):
            compute(0.0)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute(0.0)

    def replay(_: float) -> Tensor:
        graph.replay()
        return result

    return replay
