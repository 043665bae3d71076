"""The parent's side of `worker`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cpu.systems import SYSTEMS
from cpu.workspace import Workspace

BENCHMARKS = Path(__file__).parents[1]


class SystemFailure(Exception):
    """A system could not do what it was told."""


class Process:
    """A system that computes a workload when it is told to, and sleeps otherwise."""

    def __init__(self, workspace: Workspace, workload: str, system: str, threads: int) -> None:
        self.system = system
        self.workload = workload
        self._child = subprocess.Popen(
            _command("serve", workspace, workload, system, threads),
            env=_environment(workspace, system),
            cwd=BENCHMARKS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def started(self) -> float:
        """Seconds that it took; waits for it. Raises SystemFailure."""
        return float(self._answer()["seconds"])

    def output(self, path: Path) -> dict[str, Any]:
        """Runs once and saves the outputs: seconds and notes. Raises SystemFailure."""
        return self._ask(f"output {path}")

    def run(self) -> float:
        """Seconds of one run. Raises SystemFailure."""
        return float(self._ask("run")["seconds"])

    def peak(self) -> dict[str, float]:
        """MiB: see `worker.Server.do_peak`."""
        return self._ask("peak")

    def close(self) -> None:
        """Ends it."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError as problem:
            raise SystemFailure("its process has ended") from problem
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemFailure(f"its process ended with {self._child.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise SystemFailure(answer["problem"])
        return answer


def run_to_end(command: str, workspace: Workspace, workload: str, system: str, threads: int) -> None:
    """ "prepare" or "export", in a process of its own so that its memory is nobody's. Raises SystemFailure."""
    done = subprocess.run(
        _command(command, workspace, workload, system, threads),
        env=_environment(workspace, system),
        cwd=BENCHMARKS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemFailure(f"{command} ended with {done.returncode}: {done.stdout.strip()[-400:]}")


def _command(command: str, workspace: Workspace, workload: str, system: str, threads: int) -> list[str]:
    options = {
        "workspace": str(workspace.folder),
        "size": workspace.size,
        "workload": workload,
        "system": system,
        "threads": str(threads),
    }
    return [
        sys.executable,
        "-m",
        "cpu.worker",
        command,
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]


def _environment(workspace: Workspace, system: str) -> dict[str, str]:
    """Compiled code is kept in the workspace; diffusers has no advice to give."""
    own = {"TORCHINDUCTOR_CACHE_DIR": str(workspace.folder / "inductor"), "DIFFUSERS_VERBOSITY": "error"}
    return {**os.environ, **own, **SYSTEMS[system].environment}
