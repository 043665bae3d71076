"""The CUDA backend on the CPU: graphs that count, streams that remember the order, and the reference's ops on request."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from bridle.backends.cuda import CudaBackend
from bridle.backends.step_programs import Lanes, Outputs, Recorder
from bridle.weights import Model
from bridle_kernels.guide_step_blend.reference import guide_step_blend
from bridle_kernels.ops import ReferenceOps

T = TypeVar("T")


class FakeGraphs:
    """Runs what was captured again, into the outputs of the capture. captures, replays, releases: how many there were."""

    def __init__(self) -> None:
        self.releases = 0
        self.captures = 0
        self.replays = 0

    def capture(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """See `Recorder.capture`."""
        self.captures += 1
        outputs = tuple(output.clone() for output in run())
        # A replay must write all of it: poison would be seen.
        for output in outputs:
            output.fill_(torch.nan)

        def replay() -> Outputs:
            self.replays += 1
            for place, found in zip(outputs, run(), strict=True):
                place.copy_(found)
            return outputs

        return replay

    def release(self) -> None:
        """See `Recorder.release`."""
        self.releases += 1


class FakeStreams:
    """Says what would be recorded on streams."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def start(self, works: Sequence[Callable[[], T]]) -> tuple[list[T], Callable[[], None]]:
        """See `Lanes.start`."""
        self._log.append(f"fork {len(works)}")
        return [work() for work in works], lambda: self._log.append("join")


class FakeCuda(CudaBackend):
    """The same, on the CPU, in Triton's interpreter."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype, **options: Any) -> None:
        self.graphs = FakeGraphs()
        self.log: list[str] = []
        super().__init__(model, device, dtype, **options)

    @staticmethod
    def limit_memory(limit: int, device: torch.device) -> None:
        """Of no device."""

    def make_recorder(self) -> Recorder:
        """Counts."""
        return self.graphs

    def make_lanes(self) -> Lanes:
        """Remembers."""
        return FakeStreams(self.log)


class PlainCuda(FakeCuda):
    """Over the reference's ops, which are quick on the CPU."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype, **options: Any) -> None:
        super().__init__(model, device, dtype, **options)
        self.ops = ReferenceOps()
        self._guide_step_blend = guide_step_blend
