"""Where and with what something was measured."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bridle_kernels import available_isas

ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "diffusers", "onnxruntime", "onnx", "openvino")


def machine(threads: int, rounds: int) -> dict[str, Any]:
    """Where and with what something was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "git": commit(),
        "cpu": cpu_name(),
        "isas": available_isas(),
        "threads": threads,
        "rounds": rounds,
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }


def commit() -> str:
    """The git id, with a mark where the code that is measured differs from it."""
    head = _git("rev-parse", "--short", "HEAD").stdout.strip()
    changed = _git("diff", "--quiet", "HEAD", "--", "engine", "kernels", "csrc").returncode != 0
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def cpu_name() -> str:
    """As the system calls it, with family and model, which say more."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in path.read_text().splitlines() if ":" in line
    )
    return f"{fields.get('model name', '?')}, family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
