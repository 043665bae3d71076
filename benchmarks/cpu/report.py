"""The JSON file: what was measured, when and where; measurements of other days stay until they are measured again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpu import goals
from cpu.measure import Measurement
from cpu.systems import SYSTEMS
from cpu.workloads import WORKLOADS

Report = dict[str, Any]
"""{"workloads": {name: {"title", "systems": {name: {...}}, "ratios": {ours: {peer: {...}}}}}, "required": [...]}."""


def read(path: Path) -> Report:
    """What is there, or nothing."""
    return json.loads(path.read_text()) if path.exists() else {"workloads": {}}


def merge(report: Report, workload: str, measured: Measurement, where: Mapping[str, Any]) -> Report:
    """The report with what is new. A system that was measured anew loses its old ratios."""
    old = report["workloads"].get(workload, {"systems": {}, "ratios": {}})
    systems = {**old["systems"], **{name: {**entry, **where} for name, entry in measured.systems.items()}}
    ratios: dict[str, dict[str, Any]] = {
        ours: {
            peer: entry for peer, entry in peers.items() if not (ours in measured.systems and peer in measured.systems)
        }
        for ours, peers in old["ratios"].items()
    }
    for (ours, peer), ratio in measured.pairs.items():
        ratios.setdefault(ours, {})[peer] = {"ratio": ratio, "date": where["date"], "git": where["git"]}
    entry = {
        "title": WORKLOADS[workload].title,
        "systems": {name: systems[name] for name in SYSTEMS if name in systems},
        "ratios": {ours: peers for ours, peers in ratios.items() if peers},
    }
    workloads = {**report["workloads"], workload: entry}
    ordered = {name: workloads[name] for name in WORKLOADS if name in workloads}
    return {"workloads": ordered, "required": goals.required(ordered)}


def write(report: Report, path: Path) -> None:
    """As indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def table(report: Report, workload: str) -> str:
    """Lines for people."""
    entry = report["workloads"][workload]
    lines = [f"{workload}: {entry['title']}"]
    for name, found in entry["systems"].items():
        if "problem" in found:
            lines.append(f"  {name:<20} {found['problem']}")
            continue
        ratios = " ".join(
            f"{peers[name]['ratio']:.2f}x/{ours}" for ours, peers in entry["ratios"].items() if name in peers
        )
        over = "".join(f"  {key} {value:.3f}" for key, value in found.items() if key.startswith("over_"))
        lines.append(f"  {name:<20} {found['seconds']:>8.3f} s {found['run_mib']:>7.0f} MiB  {ratios}{over}")
    return "\n".join(lines)
