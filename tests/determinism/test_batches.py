"""T2 to T6: a request's bits do not depend on its mates, threads, restarts, faults or how often it runs."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from needles import MATES, NEEDLES, POISON, alone, among, asked, same_bits
from split_products import SplitOps

import bridle
from bridle.backends import cpu
from bridle.backends.cpu import CpuBackend
from bridle.backends.reference import ReferenceBackend
from bridle.request_checks import prepare

DTYPES = ["float32"] + ["bfloat16"] * CpuBackend.suits(torch.bfloat16)
LONG = bool(os.environ.get("BRIDLE_TEST_LONG"))
TRIALS = range(24 if LONG else 2)
COUNTS = (2, 3, 5, 8)


@pytest.fixture(scope="module", params=DTYPES)
def engine(request: pytest.FixtureRequest, middle_folder: Path) -> bridle.Engine:
    return bridle.load(middle_folder, backend="cpu", dtype=request.param)


def differing(engine: bridle.Engine, name: str) -> list[int]:
    """The trials in which a needle's bits among mates are not those that it has alone."""
    needle = NEEDLES[name]
    wanted = alone(engine, needle)
    assert wanted.isfinite().all()
    return [
        trial
        for trial in TRIALS
        if not same_bits(among(engine, needle, COUNTS[trial % len(COUNTS)], seed=trial), wanted)
    ]


@pytest.mark.parametrize("mate", MATES, ids=lambda mate: " ".join(mate))
def test_every_mate_is_a_request_that_can_be_made(engine: bridle.Engine, mate: dict[str, object]) -> None:
    """Short runs draw few of them."""
    request = asked(mate)
    assert prepare(engine.backend, request, engine.control).request is request


def test_a_mate_that_cannot_be_made_would_be_refused(engine: bridle.Engine) -> None:
    with pytest.raises(bridle.RequestError, match="words"):
        prepare(engine.backend, asked({"attention": [bridle.PromptEdit("a square on a hill")]}), engine.control)


@pytest.mark.parametrize("name", NEEDLES)
def test_t2_mates_do_not_matter(engine: bridle.Engine, name: str) -> None:
    assert differing(engine, name) == []


def test_t6_sums_that_depend_on_the_batch_are_noticed(middle_folder: Path) -> None:
    """T2's check on products whose order is chosen by the number of rows."""
    model = bridle.load(middle_folder, backend="reference").backend.model
    backend = ReferenceBackend(model, torch.device("cpu"), torch.float32, SplitOps())
    assert differing(bridle.Engine(backend, middle_folder), "plain") == list(TRIALS)


def test_t3_threads_do_not_matter(engine: bridle.Engine, middle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = alone(engine, NEEDLES["ControlNet"])
    dtype = engine.backend.dtype
    for threads in (1, 2, 3, 4):
        monkeypatch.setattr(cpu.torch, "get_num_threads", lambda count=threads: count)
        assert same_bits(alone(bridle.load(middle_folder, backend="cpu", dtype=dtype), NEEDLES["ControlNet"]), wanted)


def test_t3_workers_of_one_engine_do_not_matter(engine: bridle.Engine) -> None:
    wanted = {name: alone(engine, needle) for name, needle in NEEDLES.items()}
    with ThreadPoolExecutor(4) as workers:
        runs = {name: workers.submit(alone, engine, needle) for name, needle in NEEDLES.items()}
        assert all(same_bits(run.result(), wanted[name]) for name, run in runs.items())


def digest(engine: bridle.Engine) -> str:
    return hashlib.sha256(alone(engine, NEEDLES["ControlNet"]).numpy().tobytes()).hexdigest()


_CHILD = """
import os, signal, sys
from needles import NEEDLES, asked
from test_batches import digest
import bridle
engine = bridle.load(sys.argv[1], backend="cpu")
def die(snapshot):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "killed":
    engine.sample(asked(NEEDLES["ControlNet"]), callback=die)
print(digest(engine))
"""


def child(folder: Path, fate: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", _CHILD, str(folder), fate]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False)


def test_t3_t4_a_restart_gives_the_same_bits(middle_folder: Path) -> None:
    """Also after a process that was killed in the middle of the same request."""
    assert child(middle_folder, "killed").returncode == -signal.SIGKILL
    restarted = child(middle_folder, "restarted")
    assert restarted.stdout.strip() == digest(bridle.load(middle_folder, backend="cpu")), restarted.stderr


def test_t4_a_retry_after_a_fault_gives_the_same_bits(engine: bridle.Engine) -> None:
    wanted = alone(engine, NEEDLES["regions"])
    with pytest.raises(bridle.NumericFault):
        engine.sample(asked({**NEEDLES["regions"], **POISON}))
    with pytest.raises(bridle.Cancelled):
        engine.sample(asked(NEEDLES["regions"]), callback=lambda snapshot: snapshot.cancel())
    assert same_bits(alone(engine, NEEDLES["regions"]), wanted)


def test_t4_a_plan_that_was_given_up_is_made_again(engine: bridle.Engine) -> None:
    wanted = alone(engine, NEEDLES["ControlNet"])
    for width in range(64, 64 + 16 * (cpu.STEP_PROGRAMS + 1), 16):
        engine.sample(asked({"width": width, "height": 64, "num_inference_steps": 1}))
    assert same_bits(alone(engine, NEEDLES["ControlNet"]), wanted)


def test_t5_repeats_give_the_same_bits(engine: bridle.Engine) -> None:
    """A race would show now and then: several threads each, at the same time."""
    small = {**NEEDLES["plain"], "width": 64, "height": 64, "num_inference_steps": 1}
    wanted = alone(engine, small)
    found: list[bool] = []

    def repeat() -> None:
        for _ in range(1000 if LONG else 50):
            found.append(same_bits(alone(engine, small), wanted))

    threads = [threading.Thread(target=repeat) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 * (1000 if LONG else 50) and all(found)
