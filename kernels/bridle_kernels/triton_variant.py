"""What a Triton kernel is compiled with: ahead of time here, the same at a launch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
"""Triton's names of the types of elements."""
DTYPES = {dtype: TYPES[dtype] for dtype in (torch.float16, torch.bfloat16, torch.float32)}
"""What networks compute in."""


def kernel_name(kernel: Any) -> str:
    """Module and function, such as "geglu.triton._kernel"."""
    return f"{kernel.__module__.removeprefix('bridle_kernels.')}.{kernel.__name__}"


def kernel_hash(kernel: Any) -> str:
    """SHA-256 of the source of a kernel and of all that it calls."""
    return str(kernel.cache_key)


@dataclass(frozen=True, slots=True)
class Variant:
    """One specialisation of a Triton kernel.

    name: unique among all kernels. kernel: the jitted function. types: Triton's type of every argument that is not
    constant, such as "*fp16" or "i32"; a tuple for an argument that is a tuple. constants: the others. fusion: whether a
    multiplication and an addition may round once. multiples: numbers that are multiples of 16. unaligned: pointers that are
    not. may_spill: whether registers in memory are no mistake, as in gradients.
    """

    name: str
    kernel: Any
    types: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[str, int | bool | None]
    num_warps: int = 4
    num_stages: int = 2
    fusion: bool = True
    multiples: tuple[str, ...] = ()
    unaligned: tuple[str, ...] = ()
    may_spill: bool = False

    @property
    def signature(self) -> dict[str, str | tuple[str, ...]]:
        """Every argument in its order."""
        return {n: "constexpr" if n in self.constants else self.types[n] for n in self.kernel.arg_names}

    @property
    def options(self) -> dict[str, int | bool]:
        """Options of the compiler."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": self.fusion}

    @property
    def alignment(self) -> dict[tuple[int, ...], list[list[str | int]]]:
        """What is a multiple of 16 among the arguments: pointers, counted in bytes, but `unaligned`, and `multiples`."""
        places: list[tuple[int, ...]] = []
        for index, (name, kind) in enumerate(self.signature.items()):
            if name in self.unaligned:
                continue
            if isinstance(kind, tuple):
                places += [(index, part) for part, inner in enumerate(kind) if inner.startswith("*")]
            elif kind.startswith("*") or name in self.multiples:
                places.append((index,))
        return {place: [["tt.divisibility", 16]] for place in places}
