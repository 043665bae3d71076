"""What the parts found, as one JSON: where it ran, what is required, what of it is met."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu.case import FLASH, OWN
from gpu.rows import ROWS

ROOT = Path(__file__).parents[2]
FAMILIES = ("sd15", "sdxl")
CONTROLS = ("controlnet", "controlnets-3", "regions-attention", "regions-latent", "edit", "capture", "image-prompt")
AT_LEAST = {
    **dict.fromkeys(FAMILIES, 1.3),
    **{f"{family}-{control}": 2.0 for family in FAMILIES for control in CONTROLS},
}
"""Ours over the fastest peer, the compiled one among them; every other row must be faster."""
AT_MOST = {
    f"{family}-{control}": most
    for family in FAMILIES
    for control, most in (("capture", 1.03), ("regions-attention", 1.04))
}
"""Our time of a row over that of our plain row: capture, and four regions."""
FLASH_GOAL = "attention kernel, head dimension 64"
GOALS = {"sd15": 200.0, "sdxl": 33.0, FLASH_GOAL: 0.85}
"""Steps per second on an H200; of our kernel the speed over FlashAttention's, which PyTorch's fused kernel stands for."""
PRICES = {"-deterministic": "DET1 over the same row without it"}
"""By the end of a row's name, what its time over that of the row without that end is."""
BUNDLE = "bundle over ours"


def machine(git: str | None = None) -> dict[str, Any]:
    """Where this runs, without starting CUDA in this process. git: what is checked, if there is nothing to ask."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        gpu = ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git or _head(),
        "gpu": gpu or None,
        "python": sys.version.split()[0],
        "versions": {
            name: found
            for name in ("torch", "triton", "diffusers", "accelerate", "transformers")
            if (found := _version(name))
        },
    }


def _head() -> str:
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return asked.stdout.strip()


def prices(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What our rows with `PRICES` cost over those without; None where one of the two was not measured."""
    rows = timed(results)
    found: dict[str, float | None] = {}
    for name in rows:
        for end, title in PRICES.items():
            if name.endswith(end):
                own, plain = _ours(rows[name]), _ours(rows.get(name.removesuffix(end)))
                found[f"{name}: {title}"] = None if own is None or plain is None else round(own / plain, 3)
    return found


def first_images(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Seconds to a process's first image by family and system, and those with a bundle of kernels over those without."""
    found: dict[str, dict[str, float | None]] = {}
    for result in results:
        for row in result["found"] if result["part"].startswith("first_image") else ():
            system, _, family = row["name"].partition("-")
            found.setdefault(family, {})[system] = row.get("first_image_seconds")
    for seconds in found.values():
        ours, bundle = seconds.get("ours"), seconds.get("bundle")
        seconds[BUNDLE] = None if ours is None or bundle is None else round(bundle / ours, 3)
    return found


def timed(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of the timings by name. What several parts found of a row is joined; ours is that of the first."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        for row in result["found"] if result["part"].startswith("timings") else ():
            known = rows.get(row["name"], {})
            joined = {kind: {**row.get(kind, {}), **known.get(kind, {})} for kind in ("systems", "ratios")}
            compiled = row.get("systems", {}).get("compiled")
            if compiled:
                joined["systems"]["compiled"] = compiled
            rows[row["name"]] = {**row, **known, **joined}
    return rows


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def requirements(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every required figure, what was measured (None: nothing), and whether that meets it (None: not known).

    Rows that no part reached are among them. A row is faster than every peer only where the compiled one was measured.
    """
    rows = timed(results)
    found = [_faster(name, rows.get(name)) for name, row in ROWS.items() if not row.deterministic]
    for name, most in AT_MOST.items():
        own, plain = (_ours(rows.get(n)) for n in (name, ROWS[name].family))
        got = None if own is None or plain is None else own / plain
        found.append({"name": f"{name}: over the plain row", "at_most": most, "got": got,
                      "met": None if got is None else got <= most})  # fmt: skip
    return found


def _faster(name: str, row: Mapping[str, Any] | None) -> dict[str, Any]:
    """peers: that were measured. What is too slow beside one of them is too slow, whatever the others are."""
    least, ratios = AT_LEAST.get(name, 1.0), (row or {}).get("ratios") or {}
    got = min(ratios.values(), default=None)
    slow = got is not None and got < least
    met = False if slow else True if "compiled" in ratios else None
    return {
        "name": f"{name}: faster than every peer",
        "at_least": least,
        "got": got,
        "peers": sorted(ratios),
        "met": met,
    }


def beside_flash(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Our attention kernel's speed over that of PyTorch's on the same operands, beside the goal; None: one was not timed."""
    rows = {row["name"]: row.get("ms") for result in results if result["part"] == "rates" for row in result["found"]}
    sizes = [name.removeprefix(FLASH) for name in rows if name.startswith(f"{FLASH} ")]
    return [_required(f"{OWN}{size}: speed over {FLASH}", GOALS[FLASH_GOAL], _speed(rows, size)) for size in sizes]


def _speed(rows: Mapping[str, float | None], size: str) -> float | None:
    own, flash = rows.get(OWN + size), rows[FLASH + size]
    return None if own is None or flash is None else round(flash / own, 3)


def _required(name: str, least: float, got: float | None) -> dict[str, Any]:
    return {"name": name, "at_least": least, "got": got, "met": None if got is None else got >= least}


def _ours(row: Mapping[str, Any] | None) -> float | None:
    return None if row is None else row.get("systems", {}).get("ours", {}).get("ms")


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lines for people."""
    lines = []
    for result in results:
        wrong = [r for r in result["found"] if r.get("problem")]
        state = result["problem"] or f"{len(result['found']) - len(wrong)} of {len(result['found'])} are right"
        lines.append(f"{result['part']:<28} {result['seconds']:>6.1f} s  {state}")
        for row in result["found"]:
            systems = row.get("systems") or {}
            figures = [f"{name} {entry['ms']:.2f} ms" for name, entry in systems.items() if "ms" in entry]
            if figures:
                lines.append(f"  {row['name']:<26} {', '.join(figures)}")
    for family, seconds in first_images(results).items():
        figures = [f"{name} {'not measured' if value is None else value}" for name, value in seconds.items()]
        lines.append(f"seconds to the first image, {family}: {', '.join(figures)}")
    for entry in beside_flash(results):
        lines.append(f"{entry['name']} {entry['got']}, goal {entry['at_least']}")
    return "\n".join(lines)
