"""Part "kernels:MODULE": every check of a module of tests/kernels by the acceptance rule, on the device."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu.part import Context

FOLDER = Path(__file__).parents[2] / "tests" / "kernels"


def modules() -> list[str]:
    """All that there are."""
    return sorted(path.stem for path in FOLDER.glob("gpu_*_checks.py"))


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One record per check."""
    for name, check in importlib.import_module(context.argument).checks(context.device):
        yield {"name": name, "problem": problem(check)}


def problem(check: Any) -> str | None:
    """None, or what a check says."""
    try:
        check()
    except Exception as found:  # a kernel that cannot be launched is a result
        return f"{type(found).__name__}: {found}"[:400]
    return None
