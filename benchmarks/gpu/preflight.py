"""What a machine must have before anything can be checked on it, and how it gets there without a network."""

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = ("torch", "triton", "numpy", "scipy", "PIL", "safetensors", "tokenizers", "transformers", "tqdm", "blake3")
"""Modules without which Bridle cannot be imported."""
PEER = ("diffusers",)
"""Without it there are checks and figures of ours, and no peer."""
BUILD = ("pybind11",)
PROGRAMS = ("cmake", "ninja", "c++")
IMPORT_ROOTS = (
    "engine",
    "kernels",
    "exporters",
    "tests",
    "tests/kernels",
    "tests/engine",
    "tests/networks",
    "benchmarks",
)


class MissingError(Exception):
    """Names all that is missing."""


def missing_modules(names: Sequence[str], extra: Sequence[Path] = ()) -> list[str]:
    """Those of `names` that cannot be imported, also not from the folders `extra`."""
    return [
        name
        for name in names
        if importlib.util.find_spec(name) is None
        and not any((folder / name).is_dir() or (folder / f"{name}.py").is_file() for folder in extra)
    ]


def missing_programs() -> list[str]:
    """What the build needs and the PATH has not; c++ may also be g++ or clang++."""
    compilers = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    return [name for name in PROGRAMS if shutil.which(name) is None and not (name == "c++" and compilers)]


def install_wheels(wheels: Path, site: Path) -> None:
    """Installs every wheel of a folder into `site`, without a network and without what they ask for."""
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    if not files:
        raise MissingError(f"{wheels} holds no wheels")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", str(site), *files], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"the wheels of {wheels} could not be installed: {done.stderr.strip()[-400:]}")


def check(site: Path | None) -> None:
    """Raises MissingError where Bridle cannot be imported or built."""
    extra = [] if site is None else [site]
    missing = missing_modules(NEEDED, extra)
    if not has_core():
        missing += missing_modules(BUILD, extra) + missing_programs()
    if missing:
        raise MissingError(
            f"missing here: {', '.join(missing)}; put wheels of the modules in a folder: --wheels FOLDER"
        )


def has_core() -> bool:
    """Whether the native module lies beside its package, built for this Python."""
    return any(
        (ROOT / "kernels" / "bridle_kernels" / f"_core{suffix}").is_file()
        for suffix in importlib.machinery.EXTENSION_SUFFIXES
    )


def build_core(limit: float) -> None:
    """Builds `bridle_kernels._core` beside its package where it is not. Raises MissingError with the compiler's last words."""
    if has_core():
        return
    package = ROOT / "kernels" / "bridle_kernels"
    pybind11 = importlib.import_module("pybind11").get_cmake_dir()
    with tempfile.TemporaryDirectory() as build:
        found = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}", "-DBRIDLE_WERROR=OFF"]
        for command in (
            ["cmake", "-S", str(ROOT), "-B", build, "-G", "Ninja", *found],
            ["cmake", "--build", build, "--target", "_core"],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
            except subprocess.TimeoutExpired as problem:
                raise MissingError(f"the native module was not built in {limit:.0f} s") from problem
            if done.returncode:
                raise MissingError(f"{' '.join(command[:2])} failed: {(done.stdout + done.stderr).strip()[-800:]}")
        for module in Path(build).rglob("_core.*.so"):
            shutil.copy(module, package)
    if not has_core():
        raise MissingError("the build made no native module")


def import_paths(site: Path | None) -> list[str]:
    """Folders that a part imports from."""
    return [*(str(ROOT / name) for name in IMPORT_ROOTS), *([] if site is None else [str(site)])]
