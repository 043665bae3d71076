"""Part "step_kernel": guidance, solver step and blend in one kernel, every case of the CPU's tests."""

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from device_references import plain_arithmetic
from gpu.kernels import problem
from gpu.part import Context

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One record per case and dtype."""
    cases = importlib.import_module("test_guide_step_blend")
    for dtype in DTYPES:
        for seed, case in sorted(enumerate(cases.CASES), key=lambda numbered: numbered[1].height != 1):
            given = cases.arguments(case, seed=seed, dtype=dtype)
            found = problem(lambda given=given: accepted(cases, given, context.device))
            yield {"name": f"{case} {dtype}", "problem": found}


def accepted(cases: Any, given: dict[str, Any], device: str) -> None:
    """Raises AssertionError."""
    rule = importlib.import_module("numerics").assert_as_good_as_peer
    reference = importlib.import_module("bridle_kernels.guide_step_blend.reference").guide_step_blend
    kernel = importlib.import_module("bridle_kernels.guide_step_blend.triton").guide_step_blend
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    outputs, again = kernel(**moved), kernel(**moved)
    with plain_arithmetic():
        exact, peer = reference(**cases.converted(moved, lambda v: v.double())), reference(**moved)
    for one, two, best, other, size in zip(outputs, again, exact, peer, cases.magnitudes(moved), strict=True):
        assert torch.equal(one, two), "two runs differ"
        rule(one, best, other, size, depth=24)
