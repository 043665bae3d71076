"""Whole networks on the CPU: Bridle beside PyTorch, torch.compile, ONNX Runtime and OpenVINO, gated and interleaved.

    python benchmarks/cpu_networks.py --workspace /tmp/networks --only step decode:bridle-bf16,openvino-bf16

Needs the "bench" extra. Every system has a process of its own; its outputs are held against the float32 reference before
anything is timed. --only names workloads, and after a colon systems; whatever is in the report and not named stays there.
The workspace holds random weights and exported networks; without one, a temporary folder is used and removed.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cpu import goals, report
from cpu.machine import machine
from cpu.measure import Session
from cpu.plot import draw
from cpu.process import run_to_end
from cpu.systems import REFERENCE, SYSTEMS, takes_part
from cpu.workloads import WORKLOADS
from cpu.workspace import Workspace

RESULTS = Path(__file__).parent / "results"


def pairs(only: Sequence[str]) -> dict[str, list[str]]:
    """Systems by workload, both in the registries' order. Raises SystemExit for names that are not there."""
    chosen: dict[str, list[str]] = {}
    for item in only or WORKLOADS:
        workload, _, names = item.partition(":")
        wanted = names.split(",") if names else [name for name in SYSTEMS if not name.startswith("reference-")]
        unknown = [name for name in wanted if name not in SYSTEMS] + ([workload] if workload not in WORKLOADS else [])
        if unknown:
            raise SystemExit(f"--only: no {', '.join(unknown)}; there are {', '.join((*WORKLOADS, *SYSTEMS))}")
        here = chosen.setdefault(workload, [])
        here += [name for name in wanted if name not in here and takes_part(name, WORKLOADS[workload])]
    return {name: [system for system in SYSTEMS if system in chosen[name]] for name in WORKLOADS if name in chosen}


def measure(workspace: Workspace, workload: str, systems: Sequence[str], arguments: argparse.Namespace) -> None:
    """Measures a workload and adds it to the report."""
    run_to_end("prepare", workspace, workload, REFERENCE["peers"][0], arguments.threads)
    found = Session(workspace, workload, arguments.threads, arguments.rounds).measure(systems)
    where = machine(arguments.threads, arguments.rounds)
    merged = report.merge(report.read(arguments.out), workload, found, where)
    report.write(merged, arguments.out)
    print(report.table(merged, workload))


def main(argv: Sequence[str] | None = None) -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORKLOAD[:SYSTEM,...]")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each system, at least 5 for a report")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: networks for tests")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu_networks.json")
    parser.add_argument("--plot", type=Path, help="draw the report here too, and measure nothing without --only")
    arguments = parser.parse_args(argv)
    if arguments.only or arguments.plot is None:
        with tempfile.TemporaryDirectory() as temporary:
            workspace = Workspace((arguments.workspace or Path(temporary)).resolve(), arguments.size)
            for workload, systems in pairs(arguments.only).items():
                measure(workspace, workload, systems, arguments)
        print(goals.lines(report.read(arguments.out)["required"]))
    if arguments.plot is not None:
        draw(report.read(arguments.out), arguments.plot)


if __name__ == "__main__":
    main()
