"""The process of one system: builds a workload, then does what it is told, line by line.

    python -m cpu.worker serve|export|prepare --workspace DIR --size full --workload step --system bridle-bf16 --threads 2

serve: each line on standard input is answered by a line of JSON on what was standard output: "output PATH" runs once
and saves the outputs, "run" runs once, "peak" says what memory was needed. An end of the input ends the process.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from cpu.memory import peak_mib
from cpu.systems import SYSTEMS
from cpu.workloads import WORKLOADS
from cpu.workspace import Outputs, Workspace


class Server:
    """One system with one workload."""

    def __init__(self, run: Callable[[], tuple[Outputs, float | None]], notes: dict[str, str]) -> None:
        self._run = run
        self._notes = notes
        self._peak_of_start: float | None = None

    def answer(self, command: str, *arguments: str) -> dict[str, Any]:
        """What is said back."""
        return getattr(self, f"do_{command}")(*arguments)

    def do_output(self, path: str) -> dict[str, Any]:
        """Runs once, saves the outputs, and begins to watch the memory of running anew."""
        found, seconds = self._timed()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(found), path)
        self._peak_of_start = peak_mib()
        Path("/proc/self/clear_refs").write_text("5")
        return {"seconds": seconds, "notes": self._notes}

    def do_run(self) -> dict[str, Any]:
        """Runs once."""
        return {"seconds": self._timed()[1]}

    def do_peak(self) -> dict[str, Any]:
        """Highest resident memory until the first output, loading and compiling included, and since then."""
        return {"start_mib": self._peak_of_start, "run_mib": peak_mib()}

    def _timed(self) -> tuple[Outputs, float]:
        started = time.perf_counter()
        found, own = self._run()
        seconds = time.perf_counter() - started
        return found, seconds if own is None else own


def build(workspace: Workspace, workload: str, system: str, notes: dict[str, str]) -> Callable[[], Any]:
    """What one round runs."""
    chosen = SYSTEMS[system]
    if chosen.runtime == "bridle":
        from bridle_kernels import active_isa
        from cpu import ours

        notes["isa"] = active_isa()
        return ours.build(workspace, WORKLOADS[workload], chosen)
    from cpu import peers

    run = peers.build(workspace, workload, WORKLOADS[workload], chosen, notes)
    return lambda: (run(), None)


def export(workspace: Workspace, workload: str, system: str) -> None:
    """Writes the files that a system reads."""
    chosen = SYSTEMS[system]
    if chosen.runtime == "bridle":
        from cpu import ours

        ours.export(workspace, WORKLOADS[workload])
        return
    from cpu import peers

    peers.export(workspace, workload, WORKLOADS[workload], chosen)


def serve(commands: TextIO, answers: TextIO, start: Callable[[], Server]) -> None:
    """Problems are answers too."""

    def say(make: Callable[[], dict[str, Any]]) -> None:
        try:
            answer = make()
        except Exception as problem:  # whatever a runtime raises is a result of the benchmark
            answer = {"problem": f"{type(problem).__name__}: {problem}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    server: list[Server] = []

    def begin() -> dict[str, Any]:
        started = time.perf_counter()
        server.append(start())
        return {"seconds": time.perf_counter() - started}

    say(begin)
    for line in commands:
        say(lambda line=line: server[0].answer(*line.split()))  # type: ignore[misc]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("serve", "export", "prepare"))
    for name in ("workspace", "size", "workload", "system"):
        parser.add_argument(f"--{name}", required=name != "system")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    workspace = Workspace(Path(arguments.workspace), arguments.size)
    workload = WORKLOADS[arguments.workload]
    if arguments.command == "prepare":
        workspace.prepare(workload)
        return
    if arguments.command == "export":
        export(workspace, arguments.workload, arguments.system)
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(sys.stderr.fileno(), 1)  # what libraries print is no answer
    notes: dict[str, str] = {}
    with torch.no_grad():
        serve(
            sys.stdin,
            answers,
            lambda: Server(build(workspace, arguments.workload, arguments.system, notes), notes),
        )


if __name__ == "__main__":
    main()
