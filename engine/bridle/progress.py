"""Whether bars are shown: decided by `Engine.sample`, read by whatever takes long inside it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SHOWN: ContextVar[bool | None] = ContextVar("bridle_progress", default=None)


def bars_shown() -> bool:
    """What the caller's call was told; outside of any, whether standard error is a terminal."""
    shown = _SHOWN.get()
    return sys.stderr.isatty() if shown is None else shown


@contextmanager
def showing_bars(shown: bool) -> Iterator[None]:
    """For all that is called within, in this thread alone."""
    token = _SHOWN.set(shown)
    try:
        yield
    finally:
        _SHOWN.reset(token)
