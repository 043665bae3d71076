"""Part "kernels:MODULE" or "kernels:MODULE:2/4": checks of a module of tests/kernels by the acceptance rule, on the device.

2/4 is the second of four shares of them.
"""

import importlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu.part import Context

FIRST = re.compile(r"\((40|80|96|160),")
"""Head dimensions of two blocks, which were wrong once."""
FOLDER = Path(__file__).parents[2] / "tests" / "kernels"


def modules() -> list[str]:
    """All that there are."""
    return sorted(path.stem for path in FOLDER.glob("gpu_*_checks.py"))


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One record per check."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its bits only with this
    module, _, share = context.argument.partition(":")
    for name, check in chosen(importlib.import_module(module).checks(context.device), share):
        yield {"name": name, "problem": problem(check)}


def chosen(checks: Iterable[tuple[str, Any]], share: str = "") -> Iterator[tuple[str, Any]]:
    """All of them or a share, those of `FIRST` before the others. What ends the list is raised after what came before it."""
    index, count = (int(number) for number in (share or "1/1").split("/"))
    found, broken = [], None
    try:
        for named in checks:
            found.append(named)  # one by one: extend() would lose what came before an error
    except Exception as why:
        broken = why
    yield from sorted(found, key=lambda named: FIRST.search(named[0]) is None)[index - 1 :: count]
    if broken is not None:
        raise broken


def problem(check: Any) -> str | None:
    """None, or what a check says."""
    try:
        check()
    except Exception as found:  # a kernel that cannot be launched is a result
        return f"{type(found).__name__}: {found}"[:400]
    return None
