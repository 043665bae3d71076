"""A workload: systems are started as memory allows, gated, and then run in turns beside ours."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from cpu import gates
from cpu.process import Process, SystemFailure, run_to_end
from cpu.runtimes import EXPORTERS
from cpu.systems import SYSTEMS, judges
from cpu.workloads import WORKLOADS
from cpu.workspace import Workspace

Name = TypeVar("Name")

REST = 0.05
"""Seconds between two runs, in which the threads of the last one go to sleep."""
MARGIN = 1.0
"""GiB that stay free."""


@dataclass
class Measurement:
    """Of a workload. systems: by name, what is written about each. pairs: (ours, peer) -> ratios of the same rounds."""

    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], float] = field(default_factory=dict)


class Session:
    """One workload, measured once."""

    def __init__(self, workspace: Workspace, workload: str, threads: int, rounds: int) -> None:
        self._workspace = workspace
        self._workload = workload
        self._threads = threads
        self._rounds = rounds
        self._found = Measurement()

    def measure(self, systems: Sequence[str]) -> Measurement:
        """Each system with all of ours that are asked for, in groups that fit the memory."""
        self._make_references(systems)
        ours = [name for name in systems if SYSTEMS[name].ours]
        others = [name for name in systems if not SYSTEMS[name].ours]
        alive = [process for name in ours if (process := self._started(name)) is not None]
        waiting = list(others)
        try:
            alive += [plain for process in tuple(alive) if (plain := self._started_without(process.system)) is not None]
            while True:
                group = list(self._next_group(waiting, alone=not alive))
                self._run_group([*alive, *group])
                for process in group:
                    process.close()
                if not waiting:
                    return self._found
        finally:
            for process in alive:
                process.close()

    def _make_references(self, systems: Sequence[str]) -> None:
        """Outputs of those that the systems are held against, each by a process of its own that then ends."""
        workload = WORKLOADS[self._workload]
        wanted = {name: None for system in systems for name in judges(SYSTEMS[system], workload)}
        for name in wanted:
            path = self._workspace.output(self._workload, name)
            if not path.exists():
                process = Process(self._workspace, self._workload, name, self._threads)
                process.started()
                process.output(path)
                process.close()

    def _next_group(self, waiting: list[str], alone: bool) -> Iterator[Process]:
        """Takes systems off the list while memory lasts. One that does not even fit beside ours is left out."""
        first = True
        while waiting:
            name = waiting[0]
            needs = SYSTEMS[name].gib(WORKLOADS[self._workload]) if self._workspace.size == "full" else 0.0
            free = available_gib() - MARGIN
            if needs > free and not first:
                return
            waiting.pop(0)
            if needs > free:
                self._leave_out(name, f"would need about {needs:.0f} GiB, {free:.0f} GiB are free")
                continue
            process = self._started(name)
            if process is not None:
                first = False
                yield process

    def _started(self, name: str) -> Process | None:
        """A system whose outputs are right, or None and a word in the report."""
        process: Process | None = None
        try:
            if SYSTEMS[name].graphs or SYSTEMS[name].runtime in EXPORTERS:
                run_to_end("export", self._workspace, self._workload, name, self._threads)
            process = Process(self._workspace, self._workload, name, self._threads)
            started = process.started()
            output = process.output(self._workspace.output(self._workload, name))
            entry = {"start_seconds": round(started + output["seconds"], 2), **output["notes"], **self._gate(name)}
        except (SystemFailure, gates.GateError) as problem:
            self._leave_out(name, str(problem))
            if process is not None:
                process.close()
            return None
        self._found.systems[name] = entry
        return process

    @property
    def _over(self) -> str | None:
        return WORKLOADS[self._workload].over

    def _started_without(self, name: str) -> Process | None:
        """One of ours with the workload that this one adds something to, if there is one and it runs. Its outputs are that
        workload's own business."""
        if self._over is None:
            return None
        process = Process(self._workspace, self._over, name, self._threads)
        try:
            process.started()
            process.run()
        except SystemFailure as problem:
            tqdm.write(f"{self._workload}: {name} is not held against {self._over}: {problem}")
            process.close()
            return None
        return process

    def _leave_out(self, name: str, why: str) -> None:
        tqdm.write(f"{self._workload}: {name} is not timed: {why}")
        self._found.systems[name] = {"problem": why}

    def _gate(self, name: str) -> dict[str, Any]:
        """Raises GateError."""
        system, workload = SYSTEMS[name], WORKLOADS[self._workload]
        right, torch_own = (torch.load(self._workspace.output(self._workload, n)) for n in judges(system, workload))
        found = gates.distances(torch.load(self._workspace.output(self._workload, name)), right)
        if system.dtype == "float32":
            gates.check_float32(found)
            return {"distance": max(found.values())}
        own = gates.distances(torch_own, right)
        gates.check_bfloat16(found, own, system.ours)
        return {
            "distance": max(found.values()),
            "distance_over_torch": round(max(found[name] / own[name] for name in found), 3),
        }

    def _run_group(self, group: Sequence[Process]) -> None:
        runs = {(process.workload, process.system): process.run for process in group}
        seconds = interleaved(runs, self._rounds, self._workload)
        medians = {key: statistics.median(values) for key, values in seconds.items()}
        here = [process for process in group if process.workload == self._workload]
        for process in here:
            self._note(process, seconds[self._workload, process.system])
        for ours in (process.system for process in here if SYSTEMS[process.system].ours):
            mine = medians[self._workload, ours]
            if (without := medians.get((self._over or "", ours))) is not None:
                self._found.systems[ours].setdefault(f"over_{self._over}", round(mine / without, 3))
            for peer in (process.system for process in here if process.system != ours):
                self._found.pairs[ours, peer] = round(medians[self._workload, peer] / mine, 3)

    def _note(self, process: Process, values: Sequence[float]) -> None:
        entry = self._found.systems[process.system]
        entry.setdefault("seconds", round(statistics.median(values), 4))
        entry.setdefault("fastest", round(min(values), 4))
        entry.setdefault("slowest", round(max(values), 4))
        entry |= process.peak()


def interleaved(runs: dict[Name, Callable[[], float]], rounds: int, title: str) -> dict[Name, list[float]]:
    """Seconds of every run by name; each round begins with another one."""
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    names = list(runs)
    with tqdm(total=rounds * len(names), desc=title, unit="run") as bar:
        for turn in range(rounds):
            start = turn % len(names) if names else 0
            for name in (*names[start:], *names[:start]):
                time.sleep(REST)
                bar.set_postfix_str(str(name))
                seconds[name].append(runs[name]())
                bar.update()
    return seconds


def available_gib() -> float:
    """Memory that can be had without swapping; no limit where the system does not say."""
    path = Path("/proc/meminfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return float("inf")
