"""One command for whoever has a GPU: is everything right, how fast is it, and beside whom. One JSON and one plot.

    python benchmarks/gpu_check.py --out gpu_check.json

First what is right: every kernel by the acceptance rule, and the backend beside the reference, from request to picture. Then
what is fast: ours, diffusers eager and diffusers compiled in turns; the first image; what the device and each kernel reach.
Every part has a process of its own and a limit of time, and the JSON is written again after each, with what went wrong in it.

Builds the native module where it is missing. Needs no network: wheels of missing modules are taken from --wheels. Without
diffusers there are no peers. Exit codes: 0 all is right, 1 something is not, 2 nothing could be checked.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu import preflight, report
from gpu.kernels import modules
from gpu.plan import READY, TITLES, ahead, limit, stages
from gpu.plot import draw
from gpu.schedule import Budget, Part, Record, Running, failures, not_started, run_together

RESERVE = 15.0
"""Seconds for the report."""
BUILD_SECONDS = 150.0
QUIET = 0.45
"""From this part of the time on nothing else may use the GPU than what is measured."""
AHEAD = ("timings", "first_image", "parity")
"""What needs weights."""


def main(argv: Sequence[str] | None = None) -> int:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--plot", type=Path, help="default: beside the JSON")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="of the whole command; more time, more compiled rows"
    )
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install for this run alone")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tries the command, checks nothing"
    )
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: networks for tests")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", choices=TITLES, help=", ".join(TITLES))
    parser.add_argument("--git", metavar="ID", help="what is checked, where there is no .git to ask")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as workspace:
        return Check(arguments, Path(workspace)).run()


class Check:
    """One run of the command."""

    def __init__(self, arguments: argparse.Namespace, workspace: Path) -> None:
        self._arguments = arguments
        self._workspace = workspace
        self._budget = Budget(60.0 * arguments.minutes - RESERVE)
        self._whole = self._budget.left
        self._results: list[Record] = []
        self._paths: list[str] = []
        self._peers = False
        self._machine = report.machine(arguments.git)

    def run(self) -> int:
        """The exit code; the JSON is written in any case."""
        try:
            self._prepare()
            self._run_parts()
        except preflight.MissingError as problem:
            return self._write(str(problem))
        return self._write(None)

    def _prepare(self) -> None:
        """Raises MissingError."""
        site = None
        if self._arguments.wheels is not None:
            site = self._workspace / "site"
            preflight.install_wheels(self._arguments.wheels, site)
            sys.path.append(str(site))
        preflight.check(site)
        if self._arguments.device == "cuda" and self._machine["gpu"] is None:
            raise preflight.MissingError("no GPU: nvidia-smi names none")
        preflight.build_core(min(BUILD_SECONDS, self._budget.left))
        self._paths = preflight.import_paths(site)
        self._peers = importlib.util.find_spec("diffusers") is not None

    def _run_parts(self) -> None:
        coming = [
            stage
            for stage in stages(self._arguments.minutes, self._arguments.device, modules(), self._peers)
            if not self._arguments.only or stage.title in self._arguments.only
        ]
        started = self._start_ahead([stage.title for stage in coming])
        try:
            while coming:
                if coming[0].quiet:
                    self._end_ahead(started)
                elif coming[0].title in AHEAD:
                    self._wait(lambda: all(self._written(one) for one in started))
                seconds = limit(coming, self._budget.left)
                parts = [self._part(name, seconds) for name in coming.pop(0).parts]
                run_together(parts, self._workspace, self._paths, min(seconds, self._budget.left), self._found)
        finally:
            self._end_ahead(started, at_once=True)

    def _start_ahead(self, titles: Sequence[str]) -> list[Running]:
        """Weights are written, kernels exported and peers compiled beside what needs no quiet."""
        if not set(titles) & set(AHEAD):
            return []
        seconds = max(1.0, self._budget.left - (1.0 - QUIET) * self._whole)
        started = []
        for part in (self._part(name, seconds) for name in ahead(self._arguments.minutes, titles)):
            try:
                started.append(Running(part, self._workspace, self._paths, seconds + 60.0))  # it is ended before
            except OSError as why:
                self._found(not_started(part, str(why)))
        return started

    def _written(self, running: Running) -> bool:
        """Whether a part that was started ahead has written its weights, or never will."""
        return running.ended() or (self._workspace / running.part.name.rpartition(":")[2] / READY).exists()

    def _wait(self, done: Callable[[], bool]) -> None:
        """Until that is so, or it has to be quiet."""
        while self._budget.left > (1.0 - QUIET) * self._whole and not done():
            time.sleep(0.2)

    def _end_ahead(self, started: list[Running], at_once: bool = False) -> None:
        """Waits for what runs ahead, then ends it: what it did until then is kept."""
        if not at_once:
            self._wait(lambda: all([one.ended() for one in started]))
        while started:
            running = started.pop()
            running.stop()
            self._found(running.result())

    def _found(self, record: Record) -> None:
        """Keeps a result, and writes all there are."""
        self._results.append(record)
        self._write_json(None, complete=False)

    def _part(self, name: str, limit: float) -> Part:
        options = {"device": self._arguments.device, "size": self._arguments.size, "workspace": str(self._workspace)}
        return Part(name, limit, options)

    def _write_json(self, missing: str | None, complete: bool = True) -> dict[str, Any]:
        """Whoever reads the file meanwhile finds a whole one. complete: whether nothing more will come."""
        found: dict[str, Any] = {
            **self._machine,
            "minutes": round((self._whole - self._budget.left) / 60.0, 2),
            "complete": complete,
            "missing": missing,
            "peers": self._peers,
            "failures": failures(self._results),
            "requirements": report.requirements(self._results),
            "prices": report.prices(self._results),
            "first_images": report.first_images(self._results),
            "goals": report.GOALS,
            "beside_flash": report.beside_flash(self._results),
            "parts": self._results,
        }
        written = self._arguments.out.with_suffix(".partial")
        written.write_text(json.dumps(found, indent=1) + "\n")
        written.replace(self._arguments.out)
        return found

    def _write(self, missing: str | None) -> int:
        """Writes JSON and plot."""
        found = self._write_json(missing)
        try:
            draw(found, self._arguments.plot or self._arguments.out.with_suffix(".png"))
        except ImportError as problem:
            print(f"gpu_check: no plot: {problem}", file=sys.stderr)
        print(report.table(self._results))
        for line in found["failures"]:
            print("wrong:", line, file=sys.stderr)
        if missing is not None:
            print(f"gpu_check: nothing was checked: {missing}", file=sys.stderr)
            return 2
        return 1 if found["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
