"""One command for whoever has a GPU: checks every GPU kernel against its definition, times it, writes one JSON.

    python benchmarks/gpu_check.py --out results.json

Each kernel is compared with the float64 definition by the acceptance rule of tests/numerics.py, twice, for equal bits.
guide_step_blend is also timed beside the PyTorch expression of the same step in the same process: median of several runs,
L2 flushed between them. Builds the native module first where it is missing.
"""

import argparse
import importlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RUNS = 30
FLUSH_BYTES = 256 * 1024 * 1024
MODULES = ("gpu_norm_checks", "gpu_attention_checks")
"""Of tests/kernels: each yields checks by name."""


def main() -> None:
    """Exits with 2 where PyTorch sees no GPU, with 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        print("gpu_check: PyTorch sees no GPU; nothing was checked", file=sys.stderr)
        raise SystemExit(2)
    build_core()
    report = {
        **machine(),
        "kernels": [row for module in MODULES for row in checked(module, "cuda")],
        "guide_step_blend": {"checks": check(), "timings": timings()},
    }
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    failed = [row for row in report["kernels"] + report["guide_step_blend"]["checks"] if row["problem"]]
    raise SystemExit(1 if failed else 0)


def machine() -> dict[str, Any]:
    """Everything a reader needs to place the numbers."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git.stdout.strip(),
        "gpu": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": importlib.import_module("triton").__version__,
    }


def build_core() -> None:
    """Builds `bridle_kernels._core` beside its package, if it cannot be imported. Wants CMake, Ninja and pybind11."""
    package = ROOT / "kernels" / "bridle_kernels"
    if list(package.glob("_core.*")):
        return
    pybind11 = importlib.import_module("pybind11").get_cmake_dir()
    with tempfile.TemporaryDirectory() as build:
        found = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *found], check=True)
        subprocess.run(["cmake", "--build", build, "--target", "_core"], check=True)
        for module in Path(build).glob("_core.*"):
            shutil.copy(module, package)


def checked(module: str, device: str) -> list[dict[str, Any]]:
    """Every check of a module, and what was wrong."""
    sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "kernels")]
    rows = []
    for name, run in importlib.import_module(module).checks(device):
        try:
            run()
            rows.append({"check": name, "problem": None})
        except Exception as problem:
            rows.append({"check": name, "problem": f"{type(problem).__name__}: {problem}"})
    return rows


def check() -> list[dict[str, Any]]:
    """Every case of the CPU tests on the GPU."""
    sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "kernels")]
    cases = importlib.import_module("test_guide_step_blend")
    rule = importlib.import_module("numerics").assert_as_good_as_peer
    reference = importlib.import_module("bridle_kernels.guide_step_blend.reference").guide_step_blend
    kernel = importlib.import_module("bridle_kernels.guide_step_blend.triton").guide_step_blend
    rows = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for seed, case in enumerate(cases.CASES):
            given = cases.arguments(case, seed=seed, dtype=dtype)
            exact = reference(**cases.converted(given, lambda v: v.double()))
            outputs = kernel(**on_gpu(given))
            rows.append(
                {"case": str(case), "dtype": str(dtype), "problem": problem(rule, outputs, exact, given, cases)}
            )
    return rows


def problem(rule: Callable[..., None], outputs: Any, exact: Any, given: Any, cases: Any) -> str | None:
    """None, or which part of the rule failed."""
    peer = importlib.import_module("bridle_kernels.guide_step_blend.reference").guide_step_blend(**given)
    try:
        for one, best, other, magnitude in zip(outputs, exact, peer, cases.magnitudes(given), strict=True):
            rule(one.cpu(), best, other, magnitude, depth=24)
    except AssertionError as failure:
        return str(failure)
    return None


def on_gpu(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments in GPU memory."""
    return {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in given.items()}


def timings() -> list[dict[str, Any]]:
    """Milliseconds of kernel and PyTorch expression for batches of SD1.5 and SDXL latents."""
    kernel = importlib.import_module("bridle_kernels.guide_step_blend.triton").guide_step_blend
    return [timing(kernel, samples, side) for samples in (1, 8, 32) for side in (64, 128)]


def timing(kernel: Callable[..., Any], samples: int, side: int) -> dict[str, Any]:
    """Two rows a sample, two history slots."""
    generator = torch.Generator(device="cuda").manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    image = (samples, 4, side, side)
    eps, latents, history = values(2 * samples, *image[1:]).half(), values(*image), values(samples, 2, *image[1:])
    whole = torch.arange(2 * samples, dtype=torch.int32, device="cuda")
    zeros = torch.zeros_like(whole)
    names = ("noise", "known", "known_noise", "known_coefficients", "mask", "has_known", "weights")
    given = {
        "term_start": torch.arange(0, 2 * samples + 1, 2, dtype=torch.int32, device="cuda"),
        "term_row": whole,
        "term_coefficient": values(2 * samples),
        "term_weight": zeros - 1,
        "term_top": zeros,
        "term_left": zeros,
        "latents": latents,
        "history": history,
        "coefficients": values(samples, 5),
        **dict.fromkeys(names),
    }
    c, g = given["coefficients"][:, :, None, None, None], given["term_coefficient"].reshape(samples, 2, 1, 1, 1)

    def expression() -> torch.Tensor:
        m = (g * eps.float().reshape(samples, 2, *image[1:])).sum(1)
        return c[:, 0] * latents + c[:, 1] * m + c[:, 3] * history[:, 0] + c[:, 4] * history[:, 1]

    ours, peer = median_ms(lambda: kernel(eps, **given)), median_ms(expression)
    moved = eps.nbytes + latents.nbytes * 3 + history.nbytes
    return {"samples": samples, "side": side, "ms": ours, "torch_ms": peer, "ratio": peer / ours, "bytes": moved}


def median_ms(run: Callable[[], object]) -> float:
    """Median of RUNS runs after a warm-up."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    measured = []
    for index in range(RUNS + 5):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if index >= 5:
            measured.append(begin.elapsed_time(end))
    return statistics.median(measured)


if __name__ == "__main__":
    main()
