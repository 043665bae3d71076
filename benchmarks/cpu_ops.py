"""The ops of the C++ core beside PyTorch's, interleaved in one process, and beside what the CPU can do at most.

    python benchmarks/cpu_ops.py --out benchmarks/results/cpu_ops.json

Every case is first held against PyTorch's result. Ceilings are measured before and after the cases; the higher counts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bridle_kernels import _core, active_isa
from cpu import goals
from cpu.ceiling import Ceiling, higher, name_for
from cpu.machine import machine
from cpu.op_cases import REGISTRY, Case, name_of

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative distance that two correct results may have."""


def multiplied(dtype: torch.dtype) -> bool:
    """Whether the CPU, or the instruction set that BRIDLE_FORCE_ISA names, has products of a dtype."""
    try:
        _core.weight_layout(name_of(dtype))
    except ValueError:
        return False
    return True


def check(case: Case) -> None:
    """Runs both, once each. Raises RuntimeError where the results differ."""
    ours, theirs = case.ours().double(), case.theirs().double()
    distance = float((ours - theirs).norm() / theirs.norm())
    if not distance <= CLOSE[case.dtype]:
        raise RuntimeError(f"{case.op} {case.shape} {case.dtype}: relative distance {distance:.2g}")


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Median seconds of both, taken in turns. Raises RuntimeError where the results differ."""
    check(case)
    seconds: tuple[list[float], list[float]] = ([], [])
    repeats = max(1, int(0.02 / _seconds(case.theirs, 1)))
    for _ in range(rounds):
        for run, found in zip((case.ours, case.theirs), seconds, strict=True):
            found.append(_seconds(run, repeats))
    mine, peer = (statistics.median(found) for found in seconds)
    unit, work = ("gflops", case.flop) if case.flop else ("gbytes", case.bytes)
    return {
        "op": case.op,
        "shape": case.shape,
        "dtype": name_of(case.dtype),
        "ms": round(1e3 * mine, 4),
        "torch_ms": round(1e3 * peer, 4),
        "ratio": round(peer / mine, 3),
        unit: round(work / mine / 1e9, 1),
        f"torch_{unit}": round(work / peer / 1e9, 1),
    }


def with_share(row: Mapping[str, Any], ceilings: Mapping[str, float], isa: str) -> dict[str, Any]:
    """The row with the share of its ceiling that it reaches. Above one: tensors came from a cache."""
    rate = row.get("gflops", row.get("gbytes"))
    ceiling = ceilings.get(name_for(row["dtype"], isa) if "gflops" in row else "copy")
    return {**row, "of_ceiling": None if ceiling is None or rate is None else round(rate / ceiling, 3)}


def _seconds(run: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cpu_ops.json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--op", help="only ops whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    pool = _core.ThreadPool(arguments.threads)
    cases = [case for dtype in filter(multiplied, CLOSE) for make in REGISTRY for case in make(pool, dtype)]
    chosen = [case for case in cases if arguments.op is None or arguments.op in case.op]
    with Ceiling() as ceiling, torch.no_grad():
        before = ceiling.measure(arguments.threads)
        rows = [measure(case, arguments.rounds) for case in tqdm(chosen, unit="case")]
        ceilings = higher(before, ceiling.measure(arguments.threads))
    isa = active_isa()
    rows = [with_share(row, ceilings, isa) for row in rows]
    report = {
        **machine(arguments.threads, arguments.rounds),
        "isa": isa,
        "ceilings": ceilings,
        "cases": rows,
        "required": goals.required_of_ops(rows, isa),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"ceilings of {arguments.threads} threads, GFLOP/s and GB/s: {ceilings}")
    for row in rows:
        share = "" if row["of_ceiling"] is None else f", {row['of_ceiling']:.2f} of the ceiling"
        print(
            f"{row['op']:<24}{row['shape']:<28}{row['dtype']:<9} {row['ms']:>9.3f} ms, {row['ratio']:.2f} x torch{share}"
        )
    print(goals.lines(report["required"]))


if __name__ == "__main__":
    main()
