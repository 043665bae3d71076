"""What is required of the CPU backend, and what of it a report shows."""

from collections.abc import Iterable, Mapping
from typing import Any

from cpu.systems import SYSTEMS
from cpu.workloads import REGIONS, WORKLOADS

OURS = "bridle-bf16"
DTYPE = "bfloat16"
UNIT = "amx"
"""The instruction sets whose name begins like this are asked for more than the others are."""

AT_LEAST: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "step": (1.5, ("eager-bf16", "compiled-bf16", "openvino-bf16")),
    "controlnet": (1.7, ("compiled-bf16",)),
}
"""By workload: the time of the fastest of some peers over ours."""

AT_MOST: Mapping[str, float] = {"regions-attention": 1.0 + 0.02 * REGIONS, "capture": 1.03}
"""By workload: its time over that of what it adds to."""

ATTENTION = 2.0
"""PyTorch's time over ours, of every attention of the U-Net."""

FORCED: Mapping[str, tuple[str, ...]] = {
    "bridle-fp32-avx512": ("eager-fp32",),
    "bridle-fp32-avx2": ("eager-fp32", "eager-fp32-avx2"),
}
"""Ours with an instruction set forced, and what it is not slower than, on any CPU."""


def required(workloads: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of a report's workloads: every figure, what was measured (None: not all of it), and whether it meets what is required.

    met is None where nothing was measured, or where a figure is asked of a CPU with a matrix unit and this one has none.
    """
    entries = {name: workloads.get(name, {"systems": {}, "ratios": {}}) for name in WORKLOADS}
    speeds = [_speed(name, entries[name], least, peers) for name, (least, peers) in AT_LEAST.items()]
    prices = [_price(name, entries[name], most) for name, most in AT_MOST.items()]
    memory = [_memory(name, entries[name]) for name in WORKLOADS]
    return [*speeds, *prices, *memory, *(_forced(name, entries["step"], peers) for name, peers in FORCED.items())]


def required_of_ops(rows: Iterable[Mapping[str, Any]], isa: str) -> list[dict[str, Any]]:
    """Of the rows of `cpu_ops.py`: PyTorch's time over ours, of the attention that gains least in bfloat16."""
    attention = [row for row in rows if row["op"] in ("self-attention", "cross-attention") and row["dtype"] == DTYPE]
    slowest = min(attention, key=lambda row: row["ratio"], default=None)
    name = f"{slowest['op']} {slowest['shape']}" if slowest else "attention"
    got = slowest["ratio"] if slowest else None
    return [_judged(f"{name}: PyTorch's time over ours", "at_least", ATTENTION, got, isa.startswith(UNIT))]


def lines(found: Iterable[Mapping[str, Any]]) -> str:
    """For people."""
    words = {True: "met", False: "NOT MET", None: "open"}
    rows = []
    for entry in found:
        bound = f"at least {entry['at_least']}" if "at_least" in entry else f"at most {entry['at_most']:.3g}"
        rows.append(f"{entry['name']}: {entry['got']}, {bound}: {words[entry['met']]}")
    return "\n".join(rows)


def _speed(name: str, entry: Mapping[str, Any], least: float, peers: tuple[str, ...]) -> dict[str, Any]:
    got = _over_fastest(entry, OURS, peers)
    return _judged(f"{name}: the fastest peer's time over ours", "at_least", least, got, _has_unit(entry))


def _price(name: str, entry: Mapping[str, Any], most: float) -> dict[str, Any]:
    over = WORKLOADS[name].over
    got = _ours(entry).get(f"over_{over}")
    return _judged(f"{name}: over {over}", "at_most", most, got, _has_unit(entry))


def _memory(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Of running; of the peers that compute in bfloat16, as ours does."""
    peers = [
        peer for peer in _ratios(entry, OURS) if SYSTEMS[peer].runtime != "bridle" and SYSTEMS[peer].dtype == DTYPE
    ]
    theirs = [entry["systems"][peer]["run_mib"] for peer in peers]
    got = round(_ours(entry)["run_mib"] / min(theirs), 3) if theirs else None
    return _judged(f"{name}: memory over the smallest peer's", "at_most", 1.0, got, _has_unit(entry))


def _forced(system: str, entry: Mapping[str, Any], peers: tuple[str, ...]) -> dict[str, Any]:
    got = _over_fastest(entry, system, peers)
    return _judged(f"step: PyTorch's fp32 time over {system}", "at_least", 1.0, got, asked=True)


def _over_fastest(entry: Mapping[str, Any], system: str, peers: tuple[str, ...]) -> float | None:
    """The time of the fastest of some peers over that of ours; None where one of them was not measured."""
    ratios = _ratios(entry, system)
    return min(ratios[peer] for peer in peers) if all(peer in ratios for peer in peers) else None


def _ratios(entry: Mapping[str, Any], system: str) -> dict[str, float]:
    """By peer. What was measured once and failed the last time does not count."""
    measured = {name for name, found in entry["systems"].items() if "run_mib" in found}
    found = entry["ratios"].get(system, {}) if system in measured else {}
    return {peer: each["ratio"] for peer, each in found.items() if peer in measured}


def _judged(name: str, bound: str, limit: float, got: float | None, asked: bool) -> dict[str, Any]:
    met = None if got is None or not asked else got >= limit if bound == "at_least" else got <= limit
    return {"name": name, bound: limit, "got": got, "met": met}


def _ours(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = entry["systems"].get(OURS, {})
    return found


def _has_unit(entry: Mapping[str, Any]) -> bool:
    return str(_ours(entry).get("isa", "")).startswith(UNIT)
