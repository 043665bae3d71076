"""The picture of a report: seconds of every system, workload by workload."""

from pathlib import Path
from typing import Any

from cpu.report import Report
from cpu.systems import SYSTEMS


def draw(report: Report, path: Path) -> None:
    """One panel of bars per workload; the number at a bar's end is its seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [entry for entry in report["workloads"].values() if _timed(entry)]
    if not panels:
        return
    heights = [1.2 + 0.28 * len(_timed(entry)) for entry in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, entry in zip(axes[:, 0], panels, strict=True):
        _panel(axis, entry)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _timed(entry: dict[str, Any]) -> dict[str, float]:
    """Seconds by system."""
    return {name: found["seconds"] for name, found in entry["systems"].items() if "seconds" in found}


def _panel(axis: Any, entry: dict[str, Any]) -> None:
    seconds = dict(sorted(_timed(entry).items(), key=lambda item: -item[1]))
    colours = ["tab:blue" if SYSTEMS[name].ours else "tab:gray" for name in seconds]
    bars = axis.barh([SYSTEMS[name].title for name in seconds], list(seconds.values()), color=colours)
    axis.bar_label(bars, [f"{value:.2f} s" for value in seconds.values()], padding=3)
    axis.set_title(entry["title"], loc="left", fontsize=10)
    axis.set_xlim(0, 1.15 * max(seconds.values()))
    axis.spines[["top", "right"]].set_visible(False)
