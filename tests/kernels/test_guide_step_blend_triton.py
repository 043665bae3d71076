"""The Triton kernel in Triton's interpreter, in a process of its own: the interpreter is chosen at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton has wheels for Linux only")
HERE = Path(__file__).parent

PROGRAM = """
from itertools import product
import torch
from numerics import assert_as_good_as_peer, assert_integer_exact
from test_guide_step_blend import CASES, Case, arguments, converted, magnitudes
from bridle_kernels.guide_step_blend import reference, triton

def accept(given, ours):
    exact = reference.guide_step_blend(**converted(given, lambda v: v.double()))
    peer = reference.guide_step_blend(**given)
    for one, best, other, magnitude in zip(ours, exact, peer, magnitudes(given), strict=True):
        assert_as_good_as_peer(one, best, other, magnitude, depth=24)


checked = 0
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for seed, case in enumerate([*CASES[::2], CASES[11], *CASES[-3:]]):
        given = arguments(case, seed=seed, dtype=dtype)
        accept(given, triton.guide_step_blend(**given))
        checked += 1
# Operands that are absent, each beside the others, and all at odd places of memory.
for seed, (history, draws, known, noise) in enumerate(product((0, 3), (0, 2), (False, True), (False, True))):
    given = arguments(Case(samples=2, width=7, history=history, draws=draws, known=known, noise=noise), seed=seed)
    placed = {k: v if v is None else torch.cat([v.new_zeros(1), v.flatten()])[1:].view(v.shape) for k, v in given.items()}
    accept(given, triton.guide_step_blend(**placed))
    checked += 1
for case in CASES[:9]:
    given = arguments(case, seed=7, integers=True)
    exact = reference.guide_step_blend(**converted(given, lambda v: v.double()))
    for one, best in zip(triton.guide_step_blend(**given), exact, strict=True):
        assert_integer_exact(one, best)
    checked += 1
given = arguments(Case(samples=3, noise=False), seed=11)
given["mask"][:] = 1.0
given["coefficients"][1, 0] = 0.0
want = triton.guide_step_blend(**given)[0]
for sample, value in ((0, float("nan")), (1, float("inf"))):
    poisoned = {**given, "latents": given["latents"].clone()}
    poisoned["latents"][sample, 1, 2, 3] = value
    changed = int((triton.guide_step_blend(**poisoned)[0] != want).sum())
    assert changed == (1 if sample == 0 else 0), changed
print(checked, "cases")
"""


def test_in_the_interpreter() -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    outcome = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert int(outcome.stdout.split()[-2]) >= 46, outcome.stdout
