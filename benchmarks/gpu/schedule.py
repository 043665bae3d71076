"""Parts in processes of their own, within a budget of time: what one wrote is kept, whatever became of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Budget:
    """Seconds that are left of `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """May be negative."""
        return self._end - time.monotonic()


@dataclass(frozen=True)
class Part:
    """name: of the module function, "module" or "module:argument". limit: seconds that it may take at most."""

    name: str
    limit: float
    options: Mapping[str, str] = field(default_factory=dict)


class Running:
    """A part's process. Its lines go to a file, so that a process that dies leaves what it had.

    beside: how many parts share the CPU. Threads for all of it in each of them would only wait for each other.
    """

    def __init__(self, part: Part, folder: Path, paths: Sequence[str], limit: float, beside: int = 1) -> None:
        self.part = part
        self._limit = limit
        self._began = time.monotonic()
        self._lines = folder / (part.name.replace(":", "-").replace("/", "-") + ".jsonl")
        self._log = self._lines.with_suffix(".log")
        options = {"seconds": f"{limit:.1f}", **part.options}
        command = [sys.executable, "-m", "gpu.part", part.name, "--lines", str(self._lines)]
        command += [text for name, value in options.items() for text in (f"--{name}", value)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // beside))
        with self._log.open("w") as log:
            self._child = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._stopped = self._late = False

    def ended(self) -> bool:
        """Whether it has, by itself or because its time was up."""
        if self._child.poll() is None and time.monotonic() - self._began > self._limit:
            self._late = True
            self.stop()
        return self._child.poll() is not None

    def stop(self) -> None:
        """Ends it and whatever it started, if it has not ended by itself. That is no problem of its own."""
        if self._child.poll() is None:
            self._stopped = True
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def result(self) -> Record:
        """What it found, and what became of it."""
        lines = self._lines.read_text().splitlines() if self._lines.exists() else []
        records = [record for line in lines if (record := _parsed(line)) is not None]
        code = self._child.wait()
        problem = None
        if self._late:
            problem = f"stopped after {self._limit:.0f} s"
        elif code and not self._stopped:
            words = self._log.read_text(errors="replace").strip()[-600:]
            problem = f"ended with {code}: {words}"
        return {"part": self.part.name, "seconds": round(time.monotonic() - self._began, 1), "problem": problem,
                "found": records}  # fmt: skip


def _parsed(line: str) -> Record | None:
    """None for a line that its process did not finish."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def not_started(part: Part, why: str) -> Record:
    """The result of a part that never ran."""
    return {"part": part.name, "seconds": 0.0, "problem": f"not started: {why}", "found": []}


def run_together(
    parts: Sequence[Part],
    folder: Path,
    paths: Sequence[str],
    seconds: float,
    ended: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Runs parts beside each other for at most `seconds`. A part without time is not started, and says so.

    ended: told of every result when there is one. A part that cannot be started takes no other with it.
    """
    results: list[Record] = []

    def found(record: Record) -> None:
        results.append(record)
        ended(record)

    waiting: list[Running] = []
    for part in parts:
        if seconds < 1.0:
            found(not_started(part, "no time was left"))
            continue
        try:
            waiting.append(Running(part, folder, paths, min(part.limit, seconds), beside=len(parts)))
        except OSError as why:
            found(not_started(part, str(why)))
    try:
        while waiting:
            for one in [one for one in waiting if one.ended()]:
                waiting.remove(one)
                found(one.result())
            time.sleep(0.1)
    finally:
        for one in waiting:
            one.stop()
    return sorted(results, key=lambda record: [part.name for part in parts].index(record["part"]))


def failures(results: Sequence[Record]) -> list[str]:
    """Everything that went wrong, one line each."""
    found = [f"{result['part']}: {result['problem']}" for result in results if result["problem"]]
    for result in results:
        found += [f"{result['part']}: {r.get('name')}: {r['problem']}" for r in result["found"] if r.get("problem")]
    return found
