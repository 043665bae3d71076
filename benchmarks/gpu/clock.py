"""Time on a device: of whatever the host starts, and of kernels inside graphs, where nothing waits for the host."""

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

FLUSH_BYTES = 256 * 2**20
"""More than any cache holds."""
LAUNCHES = 20
"""Of a kernel in a graph."""
ROUNDS = 7

Work = Callable[[], object]


def synchronize(device: str) -> None:
    """Waits until a device has done all it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Work, device: str) -> float:
    """Of one run, as the host sees it, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def event_ms(run: Work) -> float:
    """Of one run, from the first kernel's start to the last one's end."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def flush(device: str) -> Work:
    """What empties the cache."""
    buffer = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    return buffer.zero_


def median_ms(run: Work, device: str, runs: int = 20) -> float:
    """Median milliseconds with a cold cache, launches from Python included, after three runs that are not counted."""
    if device != "cuda":
        return 1000.0 * statistics.median(seconds(run, device) for _ in range(runs))
    empty, measured = flush(device), []
    for _ in range(runs + 3):
        empty()
        measured.append(event_ms(run))
    return statistics.median(measured[3:])


class Graphs(Protocol):
    """What graphs are made and timed with."""

    def capture(self, work: Work) -> Work:
        """What replays `work`."""

    def ms(self, replay: Work) -> float:
        """Of one replay."""


class CudaGraphs:
    """Those of the device."""

    def capture(self, work: Work) -> Work:
        """Runs it once on a stream of its own first: what is compiled or allocated then is not in the graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def ms(self, replay: Work) -> float:
        """By events around it."""
        return event_ms(replay)


def graph_ms(
    run: Work, empty: Work, graphs: Graphs, launches: int = LAUNCHES, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Median milliseconds of one launch with a cold cache, and one after another with what the last one left there.

    empty: empties the cache. A graph of (empty, run) less a graph of (empty) is `run` with a cold cache; that is never less
    than with a warm one but for noise.
    """

    def repeated(*works: Work) -> Work:
        def work() -> None:
            for _ in range(launches):
                for one in works:
                    one()

        return graphs.capture(work)

    replays = (repeated(run), repeated(empty, run), repeated(empty))
    for replay in replays:
        graphs.ms(replay)
    measured = [[graphs.ms(replay) for replay in replays] for _ in range(rounds)]
    warm, both, emptying = (statistics.median(column) / launches for column in zip(*measured, strict=True))
    return max(both - emptying, warm), warm
