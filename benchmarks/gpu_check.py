"""One command for whoever has a GPU: is everything right, how fast is it, and beside whom. One JSON and one plot.

    python benchmarks/gpu_check.py --out gpu_check.json

In the order of weight: every kernel by the acceptance rule; the backend beside the reference, from request to picture; what the
device and each kernel reach; ours, diffusers eager and diffusers compiled in turns; the first image. Every part has a
process of its own and a limit of time, so the JSON is always written in time, with what went wrong in it.

Builds the native module where it is missing. Needs no network: wheels of missing modules are taken from --wheels. Without
diffusers there are no peers. Exit codes: 0 all is right, 1 something is not, 2 nothing could be checked.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu import preflight, report
from gpu.kernels import modules
from gpu.plot import draw
from gpu.schedule import Budget, Part, Record, Running, failures, run_together

RESERVE = 15.0
"""Seconds for the report."""
BUILD_SECONDS = 150.0
QUIET = 0.5
"""From this part of the time on nothing else may use the GPU than what is measured."""


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
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="PART", help="correctness, rates, timings, first_image"
    )
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
        if self._arguments.device == "cuda" and report.machine()["gpu"] is None:
            raise preflight.MissingError("no GPU: nvidia-smi names none")
        preflight.build_core(min(BUILD_SECONDS, self._budget.left))
        self._paths = preflight.import_paths(site)
        self._peers = importlib.util.find_spec("diffusers") is not None

    def _run_parts(self) -> None:
        ahead = self._start_ahead()
        try:
            if self._wants("correctness"):
                self._together(self._correctness(), self._budget.left)
            self._wait(ahead)
        finally:
            for running in ahead:
                running.stop()
                self._results.append(running.result())
        for name, limit in (("rates", 60.0), ("timings", 600.0), ("first_image", 60.0)):
            if self._wants(name):
                reserved = 40.0 if name == "timings" and self._wants("first_image") else 0.0
                for parts in self._measured(name, limit):
                    self._together(parts, self._budget.left - reserved)

    def _wants(self, name: str) -> bool:
        return not self._arguments.only or name in self._arguments.only

    def _correctness(self) -> list[Part]:
        """Beside each other: most of their time is the float64 reference on the CPU."""
        if self._arguments.device != "cuda":
            return [self._part("parity:controls", 120.0), self._part("parity:loop", 120.0)]
        kernels = [self._part(f"kernels:{module}", 180.0) for module in modules()]
        parity = [self._part(f"parity:{what}", 180.0) for what in ("controls", "loop")]
        return [*kernels, self._part("step_kernel", 120.0), *parity]

    def _measured(self, name: str, limit: float) -> list[list[Part]]:
        """Parts of a name, one after another: nothing runs beside what is timed."""
        if name == "first_image":
            return [[self._part(f"first_image:{who}", limit)] for who in self._systems()]
        if name == "timings":
            full = [[self._part(f"parity:{family}", 60.0)] for family in ("sd15", "sdxl")]
            return [*full, [self._part("timings", limit)]]
        return [[self._part(name, limit)]]

    def _systems(self) -> tuple[str, ...]:
        return ("ours", "eager") if self._peers else ("ours",)

    def _start_ahead(self) -> list[Running]:
        """Weights are written and peers compiled while the CPU checks."""
        if not (self._wants("timings") or self._wants("first_image")):
            return []
        limit = max(1.0, self._budget.left - (1.0 - QUIET) * self._whole)
        parts = [self._part(f"ahead:{family}", limit) for family in ("sd15", "sdxl")]
        return [Running(part, self._workspace, self._paths, limit) for part in parts]

    def _wait(self, ahead: Sequence[Running]) -> None:
        """Until all is compiled or half of the time is over."""
        while self._budget.left > (1.0 - QUIET) * self._whole and not all([one.ended() for one in ahead]):
            time.sleep(0.2)

    def _part(self, name: str, limit: float) -> Part:
        options = {"device": self._arguments.device, "size": self._arguments.size, "workspace": str(self._workspace)}
        return Part(name, limit, options)

    def _together(self, parts: Sequence[Part], seconds: float) -> None:
        self._results += run_together(parts, self._workspace, self._paths, seconds)

    def _write(self, missing: str | None) -> int:
        """Writes JSON and plot."""
        found: dict[str, Any] = {
            **report.machine(),
            "minutes": round((self._whole - self._budget.left) / 60.0, 2),
            "missing": missing,
            "peers": self._peers,
            "failures": failures(self._results),
            "requirements": report.requirements(self._results),
            "goals": report.GOALS,
            "parts": self._results,
        }
        self._arguments.out.write_text(json.dumps(found, indent=1) + "\n")
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
