"""Programs by key, the least recently used ones given up, each with frames for as many threads as ask at a time."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from bridle_kernels.recorder import NotRecordableError, Program, ProgramFrame


class ProgramCache:
    """At most `capacity` programs. Threads that ask for the same one get frames of their own.

    largest_idle: bytes up to which a frame is kept for its next use; a larger one is let go.
    """

    def __init__(self, capacity: int, largest_idle: float = math.inf) -> None:
        self._capacity = capacity
        self._largest_idle = largest_idle
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def __len__(self) -> int:
        """How many programs there are, those that cannot be recorded included."""
        return len(self._entries)

    @contextmanager
    def frame(self, key: Hashable, record: Callable[[], Program]) -> Iterator[ProgramFrame]:
        """A frame that nobody else has. Raises NotRecordableError each time for a program that cannot be recorded."""
        entry = self._entry(key)
        with entry.lock:
            program = entry.program(record)
            frame = entry.idle.pop() if entry.idle else ProgramFrame(program)
        yield frame
        # A frame whose run failed half-way is not used again.
        if frame.bytes <= self._largest_idle:
            entry.idle.append(frame)

    def _entry(self, key: Hashable) -> "_Entry":
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
            return entry


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[ProgramFrame] = []
        self._program: Program | None = None
        self._problem: str | None = None

    def program(self, record: Callable[[], Program]) -> Program:
        """Recorded once."""
        if self._problem is not None:
            raise NotRecordableError(self._problem)
        if self._program is None:
            try:
                self._program = record()
            except NotRecordableError as problem:
                self._problem = str(problem)
                raise
        return self._program
