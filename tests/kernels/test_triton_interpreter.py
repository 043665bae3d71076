"""The Triton kernels in Triton's interpreter, in processes of their own: the interpreter is chosen at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux only")
HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("module", "checks"),
    [("gpu_attention_checks", 62), ("gpu_norm_checks", 37), ("gpu_gradient_checks", 17), ("gpu_noise_checks", 7)],
)
def test_in_the_interpreter(module: str, checks: int) -> None:
    outcome = subprocess.run(
        [sys.executable, "run_gpu_checks.py", module, "cpu"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert int(outcome.stdout.split()[-2]) >= checks, outcome.stdout
