"""A frame that runs does not hold Python's lock: other threads go on."""

import ctypes
import threading
from collections.abc import Callable
from time import perf_counter

import pytest
import torch

from bridle_kernels import _core
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.recorder import ProgramFrame, Recorder


def longest_pause(call: Callable[[], object]) -> tuple[float, float]:
    """The seconds for which this thread had to wait at most while another one was in `call`, and those of the call."""
    took = []

    def work() -> None:
        started = perf_counter()
        call()
        took.append(perf_counter() - started)

    thread = threading.Thread(target=work)
    longest, last, going = 0.0, perf_counter(), True
    thread.start()
    while going:
        # The call may have ended before this thread is back from the start.
        going, now = thread.is_alive(), perf_counter()
        longest, last = max(longest, now - last), now
    return longest, took[0]


@pytest.fixture(scope="module")
def frame() -> ProgramFrame:
    """Some 100 ms of work, without vectors and in one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRIDLE_FORCE_ISA", "scalar")
        recorder = Recorder()
        ops, x = NativeOps(recorder, PackedWeights()), recorder.input("x", (1, 256, 512), torch.float32)
        frame = ProgramFrame(recorder.finish([ops.linear(x, torch.ones(512, 512))]))
    frame.inputs["x"].fill_(1.0)
    return frame


@pytest.mark.parametrize("method", ["run", "profile"])
def test_other_threads_of_python_go_on(frame: ProgramFrame, method: str) -> None:
    run, pool = getattr(frame, method), _core.ThreadPool(1)

    def goes_on() -> bool:
        pause, duration = longest_pause(lambda: run(pool))
        return pause < duration / 2

    # The system too may let a thread wait, but not every time.
    assert any(goes_on() for _ in range(5))
    assert bool((frame.outputs[0] == 512.0).all())


def test_a_call_that_keeps_the_lock_is_noticed() -> None:
    sleep = ctypes.PyDLL(None).usleep
    pause, _ = longest_pause(lambda: sleep(50_000))
    assert pause > 0.049
