"""A folder of compiled GPU kernels for one architecture, with a manifest. `bridle_kernels.kernel_bundle` reads it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from bridle_exporters.aot import Compiled, compile_all
from bridle_kernels.kernel_bundle import MANIFEST, KernelBundleError
from bridle_kernels.triton_kernels import variants
from bridle_kernels.triton_variant import DTYPES, Variant, kernel_hash, kernel_name


def export_kernels(
    folder: Path,
    arch: int,
    dims: Iterable[int] | None = None,
    dtype: torch.dtype | None = None,
    only: str = "",
    jobs: int = 1,
) -> Path:
    """Compiles kernels for compute capability `arch` / 10, without a GPU, and returns the path of the manifest.

    folder: is created; see `write_bundle`. dims: head dimensions of the model, None for those of all published ones.
    dtype: float16, bfloat16 or float32, None for all. only: names that contain this text. jobs: processes. Raises
    KernelBundleError for a kernel that is not what it should be, see `Compiled.problem`; there is no manifest then.
    """
    names = [variant.name for variant in _chosen(dims, dtype) if only in variant.name]
    return write_bundle(folder, arch, compile_all(names, (arch,), jobs))


def write_bundle(folder: Path, arch: int, compiled: Iterable[tuple[Compiled, bytes]]) -> Path:
    """NAME.cubin of every kernel, and manifest.json, whose path it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {variant.name: variant for variant in variants()}
    rows = [_write(named[one.name], one, cubin, folder) for one, cubin in compiled]
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"arch": f"sm_{arch}", "kernels": rows}, indent=2) + "\n", encoding="utf-8")
    return manifest


def _chosen(dims: Iterable[int] | None, dtype: torch.dtype | None) -> list[Variant]:
    """Those of text encoders, which are causal, are always among them: their head dimension is not the U-Net's."""
    wanted = None if dims is None else set(dims)
    others = tuple(f"_{name}" for known, name in DTYPES.items() if dtype is not None and known != dtype)

    def serves(variant: Variant) -> bool:
        dim = variant.constants.get("DIM")
        if variant.name.endswith(others):
            return False
        return wanted is None or dim is None or dim in wanted or bool(variant.constants.get("CAUSAL"))

    return [variant for variant in variants() if serves(variant)]


def _write(variant: Variant, compiled: Compiled, cubin: bytes, folder: Path) -> dict[str, object]:
    file = f"{variant.name}.cubin"
    if compiled.problem:
        raise KernelBundleError(file, compiled.problem)
    (folder / file).write_bytes(cubin)
    return {
        **asdict(compiled),
        "kernel": kernel_name(variant.kernel),
        "source": kernel_hash(variant.kernel),
        "signature": variant.signature,
        "constants": dict(variant.constants),
        "multiples": variant.multiples,
        "unaligned": variant.unaligned,
        **variant.options,
        "sha256": hashlib.sha256(cubin).hexdigest(),
    }
