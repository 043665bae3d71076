"""Put a trained model into the package: `python package.py pocket_run/pocket --scores pocket_ruler.json`.

Copies the exported pipeline and its controls to the folder of the default model and writes the model card. The scores must
be those of the very weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controls import FOLDERS
from model_card import write_card
from weights_hash import weights_hash

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ROOT / "engine" / "bridle" / "assets" / "pocket"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", *FOLDERS.values())
LARGEST = 32_000_000
"""Bytes of all files together."""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path, help="the pipeline that train.py has exported")
    parser.add_argument("--scores", type=Path, required=True, help="the ruler's JSON file for these weights")
    parser.add_argument(
        "--logs",
        type=Path,
        nargs="+",
        help="of the training runs in order; default: log.jsonl beside the exported pipeline",
    )
    parser.add_argument("--to", type=Path, default=PACKAGED, help="default: the folder of the package's model")
    return parser.parse_args()


def check_scores(exported: Path, scores: Mapping[str, Any]) -> None:
    """Raises ValueError if the ruler has measured other weights."""
    own = weights_hash(exported)
    if scores["model_sha256"] != own:
        raise ValueError(f"scores of weights {scores['model_sha256'][:12]}, the folder holds {own[:12]}")


def copy_model(exported: Path, target: Path) -> None:
    """Replace `target` by the pipeline's parts, and nothing else of its folder. Raises ValueError if one is missing."""
    missing = [part for part in PARTS if not (exported / part).is_dir()]
    if missing:
        raise ValueError(f"{exported} lacks {', '.join(missing)}")
    shutil.rmtree(target, ignore_errors=True)
    for part in PARTS:
        shutil.copytree(exported / part, target / part, copy_function=shutil.copyfile)
    shutil.copyfile(exported / "model_index.json", target / "model_index.json")
    for config in target.glob("*/config.json"):
        _tidy(config)


def _tidy(config: Path) -> None:
    """Leave out the folder that a network came from; let transformers load float32, as diffusers does when not asked."""
    fields = json.loads(config.read_text())
    fields.pop("_name_or_path", None)
    if "dtype" in fields:
        fields["dtype"] = "float32"
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Check, copy, describe."""
    arguments = parse_arguments()
    scores = json.loads(arguments.scores.read_text())
    check_scores(arguments.exported, scores)
    copy_model(arguments.exported, arguments.to)
    logs = arguments.logs or [arguments.exported.parent / "log.jsonl"]
    write_card(arguments.to, scores, logs, size(arguments.to))
    total = size(arguments.to)
    if total > LARGEST:
        raise ValueError(f"{total / 1e6:.2f} MB, more than {LARGEST / 1e6:.0f}")
    print(f"{arguments.to}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
