"""The picture of a report: milliseconds by system, row by row, and what each kernel reaches of its floor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu.report import timed

COLOURS = {"ours": "tab:blue", "eager": "tab:gray", "compiled": "tab:orange"}


def draw(report: Mapping[str, Any], path: Path) -> bool:
    """Whether there was anything to draw."""
    rows = [row for row in timed(report["parts"]).values() if any("ms" in entry for entry in row["systems"].values())]
    kernels = [case for case in _found(report, "rates") if "of_floor" in case]
    if not rows and not kernels:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [2 + 0.6 * len(rows), 2 + 0.25 * len(kernels)]
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(10, sum(heights)), height_ratios=heights, layout="constrained"
    )
    _bars(above, rows)
    below.barh([case["name"] for case in kernels], [case["of_floor"] for case in kernels], color="tab:blue")
    below.set_title("kernels: measured ceiling over time, 1 = at the ceiling", loc="left", fontsize=10)
    below.set_xlim(0, 1)
    below.invert_yaxis()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True


def _found(report: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    return [row for result in report["parts"] if result["part"].startswith(part) for row in result["found"]]


def _bars(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Of every row the systems side by side, as times of ours."""
    for place, row in enumerate(rows):
        timed = {name: entry["ms"] for name, entry in row["systems"].items() if "ms" in entry}
        own = timed.get("ours") or min(timed.values())
        for index, (name, ms) in enumerate(timed.items()):
            bar = axis.barh(place + 0.25 * (index - 1), ms / own, 0.22, color=COLOURS[name])
            axis.bar_label(bar, [f"{name} {ms:.2f} ms"], padding=3, fontsize=8)
    axis.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axis.set_title("time of a step or a decode over ours", loc="left", fontsize=10)
    axis.invert_yaxis()
    axis.margins(x=0.2)
