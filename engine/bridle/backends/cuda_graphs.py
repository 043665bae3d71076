"""CUDA graphs and streams: the only file that speaks to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from bridle.backends.step_programs import Outputs

T = TypeVar("T")
WARM_UP = 2
"""Evaluations before a capture: kernels are compiled and algorithms are chosen in them."""
STREAMS = 4
"""Beside the main one; more branches take turns."""


class GraphRecorder:
    """Captures on a stream of its own. All graphs share one pool of memory, for none is replayed beside another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: Any = None

    def capture(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """See `Recorder.capture`."""
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    run()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile: only what this one does is watched.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = run()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def release(self) -> None:
        """See `Recorder.release`. A pool whose graphs are all gone cannot be captured into again."""
        self._pool = None


class SideStreams:
    """Work beside the current stream, forked and joined by events, so that a capture sees it as branches of its graph."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: list[Any] = []

    def start(self, works: Sequence[Callable[[], T]]) -> tuple[list[T], Callable[[], None]]:
        """See `Lanes.start`. A result is used on the current stream after the join, and by then nothing else is begun here."""
        if not works:
            return [], lambda: None
        while len(self._streams) < min(len(works), STREAMS):
            self._streams.append(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self._device)
        forked = current.record_event()
        results, used = [], self._streams[: len(works)]
        for stream in used:
            stream.wait_event(forked)
        for index, work in enumerate(works):
            with torch.cuda.stream(used[index % len(used)]):
                results.append(work())
        done = [stream.record_event() for stream in used]

        def join() -> None:
            for event in done:
                current.wait_event(event)

        return results, join


@contextmanager
def exactness(deterministic: bool) -> Iterator[None]:
    """PyTorch's settings while kernels are chosen: no TF32; algorithms are timed, or always the same."""
    matmul = torch.backends.cuda.matmul
    before = (
        matmul.allow_tf32,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    )
    matmul.allow_tf32 = False
    if deterministic:
        matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
    try:
        with torch.backends.cudnn.flags(
            enabled=True,
            benchmark=not deterministic,
            deterministic=deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        matmul.allow_tf32 = before[0]
        matmul.allow_fp16_reduced_precision_reduction = before[1]
        matmul.allow_bf16_reduced_precision_reduction = before[2]
