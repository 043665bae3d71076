"""Several training processes, one CPU thread each, that average their gradients.

Threads of one process meet hundreds of times in a step and wait whenever a core is busy with something else; processes meet
once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


def run(count: int, meeting: Path, main: Callable[[], None]) -> None:
    """Runs `main` in `count` processes. meeting: a file they find each other by."""
    meeting.unlink(missing_ok=True)
    # They are on one computer, so a host name that resolves to nothing must not stop them.
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.spawn(_worker, (count, str(meeting.resolve()), main), nprocs=count)


def _worker(rank: int, count: int, meeting: str, main: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    main()
    distributed.destroy_process_group()


def rank() -> int:
    """0 in the process that writes files, and where there is only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def barrier() -> None:
    """Waits for the other processes."""
    if count() > 1:
        distributed.barrier()


@contextmanager
def first_then_others() -> Iterator[None]:
    """What the first process writes here, the others find."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def agreed(value: float) -> float:
    """The largest of the processes' values."""
    if count() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return float(shared)


def average_gradients(module: nn.Module) -> None:
    """Every gradient becomes its mean over the processes."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = _flatten_dense_tensors(gradients)
    distributed.all_reduce(flat)
    flat /= count()
    for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
        gradient.copy_(mean)
