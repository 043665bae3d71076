"""Where the time of a workload goes: the ops of our plans, one by one, and what is outside of them; and their memory.

    python benchmarks/cpu_profile.py --workspace /tmp/networks --workload step --system bridle-bf16

The workspace is that of `cpu_networks.py`, which makes the models. Each op's fastest of several runs counts.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from bridle_kernels import _core
from bridle_kernels.recorder import ProgramFrame
from cpu import ours
from cpu.systems import SYSTEMS
from cpu.workloads import WORKLOADS
from cpu.workspace import Workspace

Profile = list[tuple[str, float]]
"""Name and seconds of every op of every plan, in order."""

Held = dict["_core.Plan", int]
"""Bytes that the largest frame of every plan holds."""


@contextmanager
def profiled() -> Iterator[tuple[Profile, Held]]:
    """Plans time their ops while this lasts."""
    found: Profile = []
    held: Held = {}

    def run(frame: ProgramFrame, pool: "_core.ThreadPool") -> None:
        found.extend(frame.profile(pool))
        held[frame.plan] = max(frame.bytes, held.get(frame.plan, 0))

    with mock.patch.object(ProgramFrame, "run", run):
        yield found, held


def memory(held: Held) -> str:
    """A line: what a frame of each plan holds, and how much of it is arena; the rest is packed keys and values."""
    arenas = sum(plan.arena_bytes for plan in held)
    return f"frames of {len(held)} plans: {sum(held.values()) / 2**20:.1f} MiB, {arenas / 2**20:.1f} of it arenas"


def fastest(profiles: list[Profile]) -> Profile:
    """Each op's fastest run."""
    return [(ops[0][0], min(seconds for _, seconds in ops)) for ops in zip(*profiles, strict=True)]


def table(profile: Profile, wall: float, top: int) -> str:
    """Seconds by kind of op, then the slowest ops with their place in the plans."""
    kinds, counts = Counter[str](), Counter(name for name, _ in profile)
    for name, seconds in profile:
        kinds[name] += seconds
    total = sum(kinds.values())
    lines = [f"{wall:.3f} s, {total:.3f} s of it in {len(profile)} ops of plans"]
    lines += [
        f"{name:<18}{counts[name]:>5}{seconds:>9.3f} s{seconds / total:>7.1%}" for name, seconds in kinds.most_common()
    ]
    slowest = sorted(enumerate(profile), key=lambda item: -item[1][1])[:top]
    return "\n".join([*lines, "slowest:", *(f"{i:>5} {name:<18}{1e3 * s:>9.1f} ms" for i, (name, s) in slowest)])


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--workload", choices=WORKLOADS, default="step")
    parser.add_argument("--system", choices=[n for n, s in SYSTEMS.items() if s.ours], default="bridle-bf16")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--top", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    workspace = Workspace(arguments.workspace, arguments.size)
    os.environ.update(SYSTEMS[arguments.system].environment)
    run = ours.build(workspace, WORKLOADS[arguments.workload], SYSTEMS[arguments.system])
    run()
    walls, profiles = [], []
    for _ in range(arguments.rounds):
        with profiled() as (profile, held):
            started = time.perf_counter()
            _, seconds = run()
            walls.append(time.perf_counter() - started if seconds is None else seconds)
        profiles.append(profile)
    print(table(fastest(profiles), min(walls), arguments.top))
    print(memory(held))


if __name__ == "__main__":
    main()
