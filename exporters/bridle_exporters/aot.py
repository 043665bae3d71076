"""Triton kernels compiled ahead of time, without a GPU: `python -m bridle_exporters.aot --arch 90`."""

import argparse
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any

from bridle_kernels.triton_kernels import MODULES, variants
from bridle_kernels.triton_variant import Variant

ARCHITECTURES = (80, 86, 87, 89, 90, 100)
"""Compute capabilities times ten: A100, RTX 30, Orin, RTX 40, H100, B200."""

SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 87: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that one block can have (CUDA C++ Programming Guide, compute capabilities)."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel for one architecture. symbol: of its function. spills: registers spilled to memory, bytes of stack.
    may_spill: see `Variant`. atomics: operations on memory whose order is left to the GPU, which changes sums between runs."""

    name: str
    symbol: str
    arch: int
    registers: int
    spills: int
    shared_bytes: int
    cubin_bytes: int
    may_spill: bool = False
    atomics: int = 0

    @property
    def fits(self) -> bool:
        """Whether the architecture has that much shared memory."""
        return self.shared_bytes <= SHARED_LIMIT[self.arch]

    @property
    def problem(self) -> str | None:
        """None, or what is wrong with the kernel on this architecture."""
        if not self.fits:
            limit = SHARED_LIMIT[self.arch]
            return f"{self.name} wants {self.shared_bytes} bytes of shared memory, sm_{self.arch} has {limit}"
        if self.spills and not self.may_spill:
            return f"{self.name} spills {self.spills} bytes on sm_{self.arch}"
        if self.atomics:
            return f"{self.name} has {self.atomics} atomic operations on sm_{self.arch}"
        return None


def compile_variant(variant: Variant, arch: int) -> tuple[Compiled, bytes]:
    """Compiles without a GPU; the cubin too. Raises what Triton raises."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    source: Any = ASTSource(variant.kernel, variant.signature, dict(variant.constants), variant.alignment)
    compiled: Any = compile_kernel(source, target=GPUTarget("cuda", arch, 32), options=variant.options)
    cubin: bytes = compiled.asm["cubin"]
    registers, stack = resource_usage(cubin)
    symbol, shared = str(compiled.metadata.name), int(compiled.metadata.shared)
    atomics = max(len(_ATOMIC[stage].findall(compiled.asm[stage])) for stage in _ATOMIC)
    return Compiled(variant.name, symbol, arch, registers, stack, shared, len(cubin), variant.may_spill, atomics), cubin


_ATOMIC = {
    "ttir": re.compile(r"\btt\.(?:atomic_\w+|descriptor_reduce)"),
    "ptx": re.compile(r"(?:^|\s)(?:atom|red|multimem\.red|cp\.reduce\.async\.bulk)\."),
}
"""What of a kernel's intermediate code is atomic, inline assembly included."""


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) per thread, from the ELF sections that ptxas writes.

    `.nv.info` holds records of format, attribute, size: EIATTR_REGCOUNT (0x2f) and EIATTR_FRAME_SIZE (0x11), each with
    the symbol index and the value as 32-bit words.
    """
    found = {0x2F: 0, 0x11: 0}
    for section in _sections(cubin, ".nv.info"):
        at = 0
        while at + 4 <= len(section):
            form, attribute, size = section[at], section[at + 1], int.from_bytes(section[at + 2 : at + 4], "little")
            body = section[at + 4 : at + 4 + size] if form == 4 else b""
            if form == 4 and attribute in found and len(body) >= 8:
                found[attribute] = max(found[attribute], int.from_bytes(body[4:8], "little"))
            at += 4 + len(body)
    return found[0x2F], found[0x11]


def _sections(elf: bytes, wanted: str) -> list[bytes]:
    """Contents of the sections of a 64-bit ELF file with that name."""

    def word(at: int, size: int) -> int:
        return int.from_bytes(elf[at : at + size], "little")

    table, entry, count, names = word(0x28, 8), word(0x3A, 2), word(0x3C, 2), word(0x3E, 2)
    headers = [table + entry * index for index in range(count)]
    strings = word(headers[names] + 0x18, 8)
    found = []
    for header in headers:
        start = strings + word(header, 4)
        name = elf[start : elf.index(b"\0", start)].decode()
        if name == wanted:
            offset, size = word(header + 0x18, 8), word(header + 0x20, 8)
            found.append(elf[offset : offset + size])
    return found


def compile_all(names: Sequence[str], archs: Sequence[int], jobs: int) -> Iterator[tuple[Compiled, bytes]]:
    """Every named variant for every architecture, in that order, in `jobs` processes; nothing is cached."""
    wanted = [(name, arch) for name in names for arch in archs]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        yield from pool.map(_compile_named, wanted, chunksize=len(archs))


def _compile_named(wanted: tuple[str, int]) -> tuple[Compiled, bytes]:
    from triton import knobs

    name, arch = wanted
    (variant,) = (variant for variant in variants() if variant.name == name)
    with TemporaryDirectory() as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        return compile_variant(variant, arch)


CHECKED_DIMS = (40, 64, 80, 160)
"""Head dimensions of which every kernel is compiled in a check: those of SD 1.5 and SDXL."""


def checked(variant: Variant) -> bool:
    """Whether a check compiles it: all in float16, which bfloat16 is like, and, where it takes the most registers, the
    largest head dimension in float32."""
    dim = variant.constants.get("DIM")
    if variant.name.endswith("_fp32"):
        return dim in (None, CHECKED_DIMS[-1])
    return not variant.name.endswith("_bf16") and (dim is None or dim in CHECKED_DIMS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of what every kernel takes on each architecture, and exits with 1 where one has a problem."""
    parser = argparse.ArgumentParser(prog="bridle_exporters.aot", description=__doc__)
    parser.add_argument("--arch", type=int, action="append", help="such as 90; default: all", choices=ARCHITECTURES)
    parser.add_argument("--kernel", action="append", help="default: all", choices=MODULES)
    parser.add_argument("--only", default="", help="names of variants that contain this text")
    parser.add_argument("--every", action="store_true", help="every dtype and head dimension, not only a choice")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args(arguments)
    names = [v.name for v in variants(given.kernel or MODULES) if given.only in v.name and (given.every or checked(v))]
    problems = print_table(compile_all(names, given.arch or ARCHITECTURES, given.jobs))
    if problems:
        raise SystemExit("\n".join(problems))


def print_table(compiled: Iterator[tuple[Compiled, bytes]]) -> list[str]:
    """One line per kernel: registers, spills and bytes of shared memory per architecture. Returns the problems."""
    problems = []
    print("kernel: registers/spills/shared bytes per architecture")
    for name, group in groupby((one for one, _ in compiled), key=lambda one: one.name):
        rows = list(group)
        figures = (f"sm_{row.arch} {row.registers}/{row.spills}/{row.shared_bytes}" for row in rows)
        print(f"{name}: {', '.join(figures)}", flush=True)
        problems += [row.problem for row in rows if row.problem]
    return problems


if __name__ == "__main__":
    main()
