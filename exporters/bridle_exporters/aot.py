"""Triton kernels compiled ahead of time, without a GPU: `python -m bridle_exporters.aot --arch 90`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

ARCHITECTURES = (80, 86, 87, 89, 90, 100)
"""Compute capabilities times ten: A100, RTX 30, Orin, RTX 40, H100, B200."""

_POINTERS = {
    "eps": "*fp16",
    "term_start": "*i32",
    "term_row": "*i32",
    "term_coefficient": "*fp32",
    "term_weight": "*i32",
    "term_top": "*i32",
    "term_left": "*i32",
    "has_known": "*i32",
}
_INTEGERS = ("height", "width", "window_height", "window_width", "channels")
_CONSTANTS = {"HISTORY": 4, "NOISE": True, "WEIGHTS": True, "KNOWN": True, "BLOCK": 256}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel for one architecture. spills: registers spilled to memory, bytes of stack. shared_bytes: of memory."""

    name: str
    arch: int
    registers: int
    spills: int
    shared_bytes: int
    cubin_bytes: int


def compile_guide_step_blend(arch: int) -> Compiled:
    """Compiles with every feature on, four history slots and float16 model outputs."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    from bridle_kernels.guide_step_blend.triton import _kernel

    kernel: Any = _kernel
    signature = {
        name: "constexpr" if name in _CONSTANTS else "i32" if name in _INTEGERS else _POINTERS.get(name, "*fp32")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constexprs=_CONSTANTS)
    compiled: Any = compile_kernel(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4, "enable_fp_fusion": False}
    )
    cubin = compiled.asm["cubin"]
    registers, stack = resource_usage(cubin)
    return Compiled("guide_step_blend", arch, registers, stack, int(compiled.metadata.shared), len(cubin))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one JSON line per kernel and architecture."""
    parser = argparse.ArgumentParser(prog="bridle_exporters.aot", description=__doc__)
    parser.add_argument("--arch", type=int, action="append", help="such as 90; default: all", choices=ARCHITECTURES)
    chosen = parser.parse_args(arguments).arch or ARCHITECTURES
    for arch in chosen:
        print(json.dumps(asdict(compile_guide_step_blend(arch))))


if __name__ == "__main__":
    main()
