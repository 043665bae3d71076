"""The threads of the CPU backend, as PyTorch and the environment say."""

import os

import torch

from bridle.errors import RequestError
from bridle_kernels import _core

PIN = "BRIDLE_PIN_THREADS"
_CHOICES = {"": False, "0": False, "1": True}


def thread_pool() -> _core.ThreadPool:
    """As many threads as PyTorch uses, the caller's among them.

    With `BRIDLE_PIN_THREADS=1` every thread but the caller's stays on a CPU of its own, where the process may use that
    many. Raises RequestError where it is neither 0 nor 1.
    """
    choice = os.environ.get(PIN, "")
    if choice not in _CHOICES:
        raise RequestError(PIN, choice, "0 or 1")
    return _core.ThreadPool(torch.get_num_threads(), pinned=_CHOICES[choice])
