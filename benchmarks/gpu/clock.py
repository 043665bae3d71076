"""Time on a device, from the first kernel's start to the last one's end."""

import statistics
import time
from collections.abc import Callable

import torch

FLUSH_BYTES = 256 * 2**20
"""More than any cache holds."""


def synchronize(device: str) -> None:
    """Waits until a device has done all it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one run, as the host sees it, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def median_ms(run: Callable[[], object], device: str, runs: int = 20) -> float:
    """Median milliseconds of a kernel with a cold cache, after three runs that are not counted."""
    if device != "cuda":
        return 1000.0 * statistics.median(seconds(run, device) for _ in range(runs))
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    measured = []
    for index in range(runs + 3):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if index >= 3:
            measured.append(begin.elapsed_time(end))
    return statistics.median(measured)
