"""The ruler: does each control do what it says? Held-out prompts, one table, one JSON file, one contact sheet.

    python benchmarks/control/ruler.py --out benchmarks/results/pocket_ruler.json

Every row asks for the same scenes with the same seeds; "rendered" is the ground truth itself and "shuffled" the wrong
scene's, so they are the best and the worst a row can be. Needs OpenCV (the test extra).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import bridle
import bridle_eval  # noqa: F401  (puts the world's folder on the path)
from contact_sheet import ruler_sheet
from diversity import measure_diversity
from edits import measure_edits
from held_out import FIRST_SEED, Case, held_out_case
from measures import Score, score_row
from pointing import measure_pointing
from provenance import git_id
from rows import REFERENCES, ROWS, Settings
from sampling import sample_pictures
from weights_hash import weights_hash
from world import ByteImage

SHEET_CASES = 6
EXTRAS: Mapping[str, Callable[[bridle.Engine, Sequence[Case], Settings, int], Mapping[str, Any]]] = {
    "diversity": measure_diversity,
    "pointing": measure_pointing,
    "edits": measure_edits,
}
"""What has no row of the table."""
SAME = ("model_sha256", "prompts", "first_seed", "steps", "guidance_scale", "scheduler", "backend", "dtype")
"""What two reports must agree in to be one measurement."""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="model folder; default: the model in the package")
    parser.add_argument("--out", type=Path, default=Path("pocket_ruler.json"), help="the contact sheet lies beside it")
    parser.add_argument("--prompts", type=int, default=200, help="held-out scenes")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=16, help="requests sampled together")
    names = [*ROWS, *EXTRAS]
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=names,
        default=names,
        metavar="ROW",
        help="what to measure; the rest is kept of an earlier report of the same measurement (default: everything)",
    )
    parser.add_argument("--backend", default="reference")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def sample_rows(
    engine: bridle.Engine, names: Sequence[str], cases: Sequence[Case], settings: Settings, batch: int
) -> tuple[dict[str, list[ByteImage]], dict[str, float]]:
    """Pictures and seconds of every named row."""
    pictures: dict[str, list[ByteImage]] = {}
    seconds: dict[str, float] = {}
    for name in names:
        started = time.monotonic()
        requests = [ROWS[name](case, settings) for case in cases]
        pictures[name] = sample_pictures(engine, requests, batch, name)
        seconds[name] = round(time.monotonic() - started, 1)
    return pictures, seconds


def score_rows(cases: Sequence[Case], pictures: Mapping[str, Sequence[ByteImage]]) -> dict[str, dict[str, Score]]:
    """The table."""
    rows = tqdm(pictures.items(), desc="judging", unit="row")
    return {name: score_row(cases, shown) for name, shown in rows}


def provenance(arguments: argparse.Namespace, engine: bridle.Engine) -> dict[str, Any]:
    """What was measured, where and how."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "git": git_id(),
        "model": "pocket" if arguments.model is None else Path(arguments.model).name,
        "model_sha256": weights_hash(engine.path),
        "prompts": arguments.prompts,
        "first_seed": FIRST_SEED,
        "steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "scheduler": engine.backend.model.scheduler["_class_name"],
        "backend": engine.backend.name,
        "dtype": str(engine.backend.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }


def print_table(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Markdown, one line a row."""
    columns = list(next(iter(table.values())))
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, scores in table.items():
        cells = [f"{scores[column]['mean']:.3f}" for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")


def merged(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """The report, with what it lacks taken from the one in the file if that is of the same measurement."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if any(earlier.get(field) != report[field] for field in SAME):
        earlier = {}
    rows, seconds = ({**earlier.get(field, {}), **report[field]} for field in ("rows", "seconds"))
    ordered = {name: rows[name] for name in (*REFERENCES, *ROWS) if name in rows}
    return {**earlier, **report, "rows": ordered, "seconds": seconds}


def main() -> None:
    """Sample, judge, write."""
    arguments = parse_arguments()
    settings = Settings(arguments.steps, arguments.guidance)
    engine = bridle.load(arguments.model, backend=arguments.backend, device=arguments.device)
    cases = [held_out_case(index) for index in range(arguments.prompts)]
    names = [name for name in arguments.rows if name in ROWS]
    pictures, seconds = sample_rows(engine, names, cases, settings, arguments.batch)
    table = score_rows(cases, {**{name: make(cases) for name, make in REFERENCES.items()}, **pictures})
    found = {
        **provenance(arguments, engine),
        "rows": {name: {column: asdict(score) for column, score in scores.items()} for name, scores in table.items()},
        **{n: EXTRAS[n](engine, cases, settings, arguments.batch) for n in arguments.rows if n in EXTRAS},
        "seconds": seconds,
    }
    report = merged(found, arguments.out)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report["rows"])
    print("\n" + "\n".join(f"{name}: {report.get(name)}" for name in EXTRAS) + f"\n\n{arguments.out}")
    if names:
        sheet = arguments.out.with_suffix(".png")
        ruler_sheet(cases[:SHEET_CASES], {name: shown[:SHEET_CASES] for name, shown in pictures.items()}).save(sheet)
        print(sheet)


if __name__ == "__main__":
    main()
