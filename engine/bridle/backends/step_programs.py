"""Programs: kinds of evaluations that are captured once and replayed with other values."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bridle.backends.static_rows import Description, Evaluation, StaticRows
from bridle.progress import bars_shown
from bridle.rows import Residual, Residuals

_log = logging.getLogger("bridle")

Outputs = tuple[Tensor, ...]
Compute = Callable[[Evaluation], Outputs]
T = TypeVar("T")


class Recorder(Protocol):
    """How a computation on tensors that stay where they are is made repeatable."""

    def capture(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """What runs it again; its outputs are overwritten by the next run. Raises RuntimeError where it cannot be captured."""

    def release(self) -> None:
        """All that was captured is gone; its memory can be another's."""


class Lanes(Protocol):
    """Where independent work goes."""

    def start(self, works: Sequence[Callable[[], T]]) -> tuple[list[T], Callable[[], None]]:
        """The results of all of them, and what has to be called before anything reads those."""


class InOrder:
    """One after another, where the caller is."""

    def start(self, works: Sequence[Callable[[], T]]) -> tuple[list[T], Callable[[], None]]:
        """See `Lanes.start`."""
        return [work() for work in works], lambda: None


class LateResiduals(Mapping[str, tuple[Residual, ...]]):
    """Residuals of which those of branches are waited for when the first of them is read: `join` is called once."""

    def __init__(self, residuals: Residuals, late: frozenset[str], join: Callable[[], None]) -> None:
        self._residuals = residuals
        self._late = late
        self._join = join
        self._joined = False

    def __getitem__(self, point: str) -> tuple[Residual, ...]:
        if point in self._late and point in self._residuals:
            self.join()
        return self._residuals[point]

    def __contains__(self, point: object) -> bool:
        return point in self._residuals

    def __iter__(self) -> Iterator[str]:
        return iter(self._residuals)

    def __len__(self) -> int:
        return len(self._residuals)

    def join(self) -> None:
        """Waits for the branches, if nobody has."""
        if not self._joined:
            self._joined = True
            self._join()


class Program:
    """One kind of evaluation: its own places for every tensor, and what computes on them."""

    def __init__(self, evaluation: Evaluation, description: Description, compute: Compute, recorder: Recorder) -> None:
        self._static = StaticRows(evaluation, description)
        static = self._static.evaluation
        try:
            self._replay = recorder.capture(lambda: compute(static))
            self.captured = True
        except RuntimeError as problem:
            if _wants_memory(problem):
                raise torch.OutOfMemoryError(str(problem)) from problem
            _log.warning("these rows run without a graph: %s", problem)
            self._replay = lambda: compute(static)
            self.captured = False

    @property
    def evaluation(self) -> Evaluation:
        """What it computes, padded to its bucket."""
        return self._static.evaluation

    @property
    def nbytes(self) -> int:
        """Of its places."""
        return self._static.nbytes

    def run(self, description: Description) -> Outputs:
        """The outputs for the values of an evaluation; the next run overwrites them."""
        self._static.bind(description)
        outputs = self._replay()
        self._static.hand_out(description)
        return outputs


def _wants_memory(problem: BaseException | None) -> bool:
    """Whether it comes of a lack of memory. A capture that is broken off has errors of its own, which would hide that."""
    while problem is not None:
        if isinstance(problem, torch.OutOfMemoryError):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


class Programs:
    """The programs in use, at most `most`. Thread-safe.

    captures: how many were made. uncaptured: how many of them run without a graph. See `progress` for bars. room: bytes that
    the places of all of them may take, None = any number; the one in use is kept. crowded: whether there is no memory for the
    activations of a capture beside those of programs.
    """

    def __init__(self, compute: Compute, recorder: Recorder, most: int) -> None:
        self._compute = compute
        self._recorder = recorder
        self._most = most
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._lock = threading.Lock()
        self.room: int | None = None
        self.crowded = False
        self.captures = 0
        self.uncaptured = 0

    def __len__(self) -> int:
        return len(self._programs)

    @property
    def evaluations(self) -> list[Evaluation]:
        """What each computes, padded to its bucket."""
        with self._lock:
            return [program.evaluation for program in self._programs.values()]

    @property
    def nbytes(self) -> int:
        """Of all places."""
        with self._lock:
            return self._places()

    def _places(self) -> int:
        return sum(program.nbytes for program in self._programs.values())

    def clear(self) -> None:
        """Gives back all of them, and what they hold."""
        with self._lock:
            self._release()

    def run(self, evaluation: Evaluation, counts: tuple[int, ...]) -> Outputs:
        """The first counts[i] rows or samples of output i, in memory of their own."""
        with self._lock:
            with torch.inference_mode():
                description = Description(evaluation)
                outputs = self._program(evaluation, description).run(description)
            return tuple(output[:count].clone() for output, count in zip(outputs, counts, strict=True))

    def _program(self, evaluation: Evaluation, description: Description) -> Program:
        key = description.key
        if key not in self._programs:
            if self.crowded and self._programs:
                self._release()
            while len(self._programs) >= self._most:
                self._programs.popitem(last=False)
            self._programs[key] = self._made(evaluation, description)
        self._programs.move_to_end(key)
        while len(self._programs) > 1 and self._overflows():
            self._programs.popitem(last=False)
        return self._programs[key]

    def _overflows(self) -> bool:
        return self.room is not None and self._places() > self.room

    def _release(self) -> None:
        self._programs.clear()
        self._recorder.release()

    def _made(self, evaluation: Evaluation, description: Description) -> Program:
        rows, _, height, width = evaluation.rows.sample.shape
        with tqdm(
            total=1, desc=f"capturing {rows} rows of {height}x{width}", leave=False, disable=not bars_shown()
        ) as bar:
            program = self._tried(evaluation, description)
            if program is None:
                self._release()
                program = Program(evaluation, description, self._compute, self._recorder)
            bar.update()
        self.captures += 1
        self.uncaptured += not program.captured
        return program

    def _tried(self, evaluation: Evaluation, description: Description) -> Program | None:
        """None where there is no memory. What the attempt held goes with its error: it must be gone before the next one."""
        try:
            return Program(evaluation, description, self._compute, self._recorder)
        except torch.OutOfMemoryError:
            return None
