"""A report of the ruler keeps what an earlier one of the same measurement found, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ruler import SAME, merged


def report(rows: dict[str, int], **changes: object) -> dict[str, Any]:
    return {**dict.fromkeys(SAME, 1), "rows": rows, "seconds": dict.fromkeys(rows, 2.0), **changes}


def test_rows_of_the_same_measurement_are_kept_in_the_table_order(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    first = merged(report({"seg": 1, "canny": 2, "rendered": 3}, diversity=4), path)
    assert list(first["rows"]) == ["rendered", "canny", "seg"]
    path.write_text(json.dumps(first))
    second = merged(report({"no control": 5, "seg": 6}, pointing=7), path)
    assert list(second["rows"].items()) == [("rendered", 3), ("no control", 5), ("canny", 2), ("seg", 6)]
    assert second["diversity"] == 4 and second["pointing"] == 7 and set(second["seconds"]) == set(second["rows"])


def test_another_measurement_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report({"seg": 1}, diversity=4)))
    for field in SAME:
        assert merged(report({"canny": 2}, **{field: 9}), path) == report({"canny": 2}, **{field: 9})
