"""What the CPU can do at most, measured by `csrc/benchmarks/ceiling.cc`, which is compiled for the occasion."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

CORE = Path(__file__).parents[2] / "csrc"
SOURCES = ("benchmarks/ceiling.cc", "isa/amx.cc")


class Ceiling:
    """The compiled probe. A context: its folder goes at the end."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._program = Path(self._folder.name) / "ceiling"
        compiler = os.environ.get("CXX", "c++")
        flags = ["-std=c++20", "-O3", "-Wall", "-Wextra", "-Werror", "-pthread", "-mamx-tile", "-mamx-bf16"]
        flags += [f"-I{CORE}", f"-I{CORE / 'include'}"]
        sources = [str(CORE / name) for name in SOURCES]
        subprocess.run([compiler, *flags, *sources, "-o", str(self._program)], check=True)

    def __enter__(self) -> "Ceiling":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def measure(self, threads: int) -> Mapping[str, float]:
        """GFLOP/s of "float32", "bfloat16" and "amx_bfloat16" multiply-adds in registers, as far as the CPU has them,
        and GB/s of "copy", read and written, from memory.
        """
        run = subprocess.run([str(self._program), str(threads)], check=True, capture_output=True, text=True)
        found: dict[str, float] = json.loads(run.stdout)
        return found


def higher(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """The higher of two measurements, one by one."""
    return {name: max(value, second[name]) for name, value in first.items()}


def name_for(dtype: str, isa: str) -> str:
    """The ceiling that an op of a dtype has under an instruction set."""
    return "amx_bfloat16" if dtype == "bfloat16" and isa.startswith("amx") else dtype
