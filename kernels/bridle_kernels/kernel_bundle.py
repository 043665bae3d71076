"""A folder of GPU kernels that `bridle export-kernels` compiled, and how they are started without a compiler."""

import ctypes
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bridle_kernels.cuda_driver import Driver, Value
from bridle_kernels.triton_kernels import variants
from bridle_kernels.triton_launch import Launch
from bridle_kernels.triton_variant import TYPES, kernel_hash, kernel_name

_log = logging.getLogger("bridle")
MANIFEST = "manifest.json"
SCRATCH = 2
"""Pointers that Triton passes after the arguments: to memory that none of the kernels asks for."""
Kind = str | tuple[str, ...]


class KernelBundleError(ValueError):
    """A bundle cannot be used. file: in its folder. problem: what it has and what is wanted."""

    def __init__(self, file: str, problem: str) -> None:
        self.file = file
        self.problem = problem
        super().__init__(f"{file}: {problem}")


@dataclass(frozen=True, slots=True)
class BundledKernel:
    """One cubin. kinds: types of the arguments that are passed, in their order. multiples, unaligned: see `Variant`."""

    name: str
    symbol: str
    cubin: bytes
    warps: int
    shared_bytes: int
    kinds: Mapping[str, Kind]
    multiples: tuple[str, ...]
    unaligned: tuple[str, ...] = ()

    def values(self, arguments: Mapping[str, Any]) -> list[Value] | None:
        """What the driver is given for the arguments of a launch, None where they are not of these types."""
        found: list[Value] = []
        if set(arguments) != set(self.kinds):
            return None
        for name, kind in self.kinds.items():
            for one, value in _pairs(kind, arguments[name]):
                passed = _value(one, value, 1 if name in self.unaligned else 16)
                if passed is None or (name in self.multiples and value % 16):
                    return None
                found.append(passed)
        return found + [ctypes.c_void_p()] * SCRATCH


class KernelBundle:
    """The kernels of one folder on one architecture. What it lacks is compiled, and said once per kernel."""

    def __init__(self, folder: Path, driver: Driver) -> None:
        """Raises KernelBundleError for a bundle of another architecture or of other sources, or a damaged one."""
        self._driver = driver
        self._kernels: dict[object, list[BundledKernel]] = {}
        self._loaded: dict[tuple[int, str], Any] = {}
        self._missed: set[object] = set()
        self._arch = driver.architecture()
        for key, kernel in _read(folder, self._arch):
            self._kernels.setdefault(key, []).append(kernel)

    def run(self, launch: Launch) -> bool:
        """See `Precompiled`."""
        key = _key(kernel_name(launch.kernel), launch.constants, launch.num_warps, launch.num_stages, launch.fusion)
        for kernel in self._kernels.get(key, ()) if self._driver.architecture() == self._arch else ():
            values = kernel.values(launch.arguments)
            if values is not None:
                self._start(kernel, launch, values)
                return True
        if key not in self._missed:
            self._missed.add(key)
            _log.warning("kernel %s is not in the bundle as it is launched: it is compiled", kernel_name(launch.kernel))
        return False

    def _start(self, kernel: BundledKernel, launch: Launch, values: Sequence[Value]) -> None:
        place = (self._driver.device(), kernel.name)
        if place not in self._loaded:
            self._loaded[place] = self._driver.load(kernel.cubin, kernel.symbol, kernel.shared_bytes)
        self._driver.start(self._loaded[place], launch.grid, kernel.warps, kernel.shared_bytes, values)


def _key(name: str, constants: Mapping[str, object], warps: int, stages: int, fusion: bool) -> object:
    """What a launch and a kernel agree on, apart from the types of arguments."""
    return name, frozenset(constants.items()), warps, stages, fusion


def _read(folder: Path, arch: int) -> Iterator[tuple[object, BundledKernel]]:
    manifest = _manifest(folder)
    if manifest.get("arch") != f"sm_{arch}":
        raise KernelBundleError(MANIFEST, f"the kernels are for {manifest.get('arch')}, this GPU wants sm_{arch}")
    installed = {kernel_name(variant.kernel): kernel_hash(variant.kernel) for variant in variants()}
    try:
        for row in manifest["kernels"]:
            if row["source"] != installed.get(row["kernel"]):
                raise KernelBundleError(MANIFEST, f"{row['name']} is of other sources than the installed kernels")
            constants, options = row["constants"], (row["num_warps"], row["num_stages"], row["enable_fp_fusion"])
            yield _key(row["kernel"], constants, *options), _bundled(row, folder)
    except (KeyError, TypeError) as problem:
        raise KernelBundleError(MANIFEST, f"lacks a field: {problem}") from problem


def _manifest(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise KernelBundleError(MANIFEST, f"is not readable: {type(problem).__name__}") from problem
    if not isinstance(found, dict):
        raise KernelBundleError(MANIFEST, f"is a {type(found).__name__}, wants an object")
    return found


def _bundled(row: Mapping[str, Any], folder: Path) -> BundledKernel:
    file = f"{row['name']}.cubin"
    if Path(file).name != file:
        raise KernelBundleError(MANIFEST, f"{row['name']!a} is not a name")
    try:
        cubin = (folder / file).read_bytes()
    except OSError as problem:
        raise KernelBundleError(file, f"is not readable: {type(problem).__name__}") from problem
    if hashlib.sha256(cubin).hexdigest() != row["sha256"]:
        raise KernelBundleError(file, "is not what the manifest says: its SHA-256 differs")
    kinds = {n: tuple(k) if isinstance(k, list) else k for n, k in row["signature"].items() if k != "constexpr"}
    sizes = int(row["num_warps"]), int(row["shared_bytes"])
    return BundledKernel(
        row["name"], row["symbol"], cubin, *sizes, kinds, tuple(row["multiples"]), tuple(row["unaligned"])
    )


def _pairs(kind: Kind, value: Any) -> list[tuple[str, Any]]:
    if isinstance(kind, str):
        return [(kind, value)]
    # A tuple of another length is a launch of another kernel: "none" is the type of nothing.
    return list(zip(kind, value, strict=True)) if len(kind) == len(value) else [("none", None)]


def _value(kind: str, value: Any, alignment: int) -> Value | None:
    """One value as a C type, None where it is not of a kind. Pointers are to multiples of `alignment` bytes."""
    if isinstance(value, Tensor):
        fits = kind == f"*{TYPES.get(value.dtype)}" and value.data_ptr() % alignment == 0
        return ctypes.c_void_p(value.data_ptr()) if fits else None
    if kind == "i32" and isinstance(value, int) and -(2**31) <= value < 2**31:
        return ctypes.c_int32(value)
    if kind == "i64" and isinstance(value, int):
        return ctypes.c_int64(value)
    return ctypes.c_float(value) if kind == "fp32" and isinstance(value, float) else None
