"""The one place where Triton kernels are launched: from a bundle compiled ahead of time, else compiled at the first use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Launch:
    """kernel: the jitted function. arguments: by name; tensors, numbers and tuples of them. constants: what is compiled in,
    None for an operand that is absent."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, int | bool | None]
    num_warps: int
    num_stages: int
    fusion: bool

    def compile_and_run(self) -> None:
        """Starts it as Triton does, which compiles it at its first use."""
        self.kernel[self.grid](
            **self.arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            enable_fp_fusion=self.fusion,
        )


class Precompiled(Protocol):
    """Kernels that need no compiler."""

    def run(self, launch: Launch) -> bool:
        """Starts a kernel on the current stream; False if it is not among them."""


_serving: list[Precompiled] = []


def serve_from(kernels: Precompiled | None) -> None:
    """Where this process takes kernels from first; None for nowhere, they are compiled."""
    _serving[:] = [] if kernels is None else [kernels]


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: Mapping[str, Any],
    constants: Mapping[str, int | bool],
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    fusion: bool = True,
) -> None:
    """Starts a kernel on the current stream. arguments: an operand that is None is absent, and compiled without."""
    absent = {name: None for name, value in arguments.items() if value is None}
    given = {name: value for name, value in arguments.items() if value is not None}
    wanted = Launch(kernel, grid, given, {**constants, **absent}, num_warps, num_stages, fusion)
    if not any(kernels.run(wanted) for kernels in _serving):
        wanted.compile_and_run()
