"""Measures tiles of attention on a GPU, for the shapes of the published networks."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product

import torch
import triton

from bridle_kernels.attention import gpu_problem
from bridle_kernels.attention import triton as forward_kernels
from bridle_kernels.attention.gpu_operands import gpu_segment
from bridle_kernels.attention.launch import ONE_TILE, bucket, is_sound, split, tiles
from bridle_kernels.attention.segment import Piece, Segment
from bridle_kernels.triton_variant import DTYPES, kernel_hash
from bridle_kernels.tuning import Choice, Entry, device_name, fastest, versions

OP = "attention"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference from the rule's output, of standard normal values, that is rounding."""


@dataclass(frozen=True, slots=True)
class Case:
    """Rows, queries, keys, heads and head dimension of a site."""

    rows: int
    queries: int
    keys: int
    heads: int
    dim: int


CASES = (
    Case(2, 4096, 4096, 8, 40),
    Case(2, 4096, 77, 8, 40),
    Case(2, 1024, 1024, 8, 80),
    Case(2, 1024, 77, 8, 80),
    Case(2, 256, 256, 8, 160),
    Case(2, 256, 77, 8, 160),
    Case(2, 4096, 4096, 10, 64),
    Case(2, 4096, 77, 10, 64),
)
"""The largest sites of SD 1.5 at 512 pixels and of SDXL at 1024, with guidance."""


def choices(case: Case) -> Iterator[Choice]:
    """Tiles to try."""
    keys = (32, 64, 128) if case.keys > ONE_TILE else (16, 32, 64, 128)
    for queries, key_tile, warps, stages in product((16, 32, 64, 128), keys, (2, 4, 8), (1, 2, 3)):
        if is_sound(split(case.dim), queries, warps):
            yield {"queries": queries, "keys": key_tile, "warps": warps, "stages": stages}


def measure(cases: Iterable[Case], dtypes: Iterable[torch.dtype], device: torch.device) -> Iterator[Entry]:
    """Results for a GPU, where another choice than the rule is clearly faster. Takes minutes."""
    for case, dtype in product(cases, dtypes):
        rule = {n: v for n, v in asdict(tiles(case.dim, dtype, case.keys, False)).items() if n not in ("low", "high")}
        best, time, rule_time = fastest(rule, choices(case), Timer(case, dtype, device, rule))
        if best != rule:
            place = (bucket(case.dim, case.keys, False), DTYPES[dtype], device_name(device), *versions())
            yield Entry(OP, *place, kernel_hash(forward_kernels._forward), best, time, rule_time)


class Timer:
    """Runs one case with given tiles and compares its output with that of the rule."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device, rule: Choice) -> None:
        random = torch.Generator(device).manual_seed(0)
        shapes = [(case.rows, count, case.heads, case.dim) for count in (case.queries, case.keys, case.keys)]
        q, k, v = (torch.randn(shape, generator=random, device=device, dtype=dtype) for shape in shapes)
        self._problem = gpu_problem.Problem(q, gpu_segment(q, Segment((Piece(k, v),)), False), case.dim**-0.5)
        self._rule = tiles(case.dim, dtype, case.keys, False)
        self._tolerance = TOLERANCE[dtype]
        self._out = q.new_empty(case.rows, case.queries, case.heads * case.dim)
        self._run(rule)
        self._wanted = self._out.clone()

    def __call__(self, choice: Choice) -> float:
        """Median of microseconds. Raises RuntimeError where it does not run or computes something else."""
        try:
            self._run(choice)
            if not torch.allclose(self._out.float(), self._wanted.float(), atol=self._tolerance, rtol=self._tolerance):
                raise RuntimeError(f"{choice} computes something else")
            return 1000.0 * float(triton.testing.do_bench(lambda: self._run(choice), return_mode="median"))
        except triton.runtime.errors.OutOfResources as problem:
            raise RuntimeError(str(problem)) from problem

    def _run(self, choice: Choice) -> None:
        t = replace(self._rule, **choice)
        self._problem.start(t, None, self._out, None, False, None, (True, True, False))
