"""Twelve bugs, put into a copy of the sources one at a time: the tests must notice every one.

    python tests/seeded_bugs.py [NUMBER ...]

Builds the core in a temporary folder, first without any bug (the tests must pass), then with each. About ten minutes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pybind11
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
GEMM, ATTENTION, NORM = (f"tests/kernels/test_native_{name}.py" for name in ("gemm", "attention", "norm"))


@dataclass(frozen=True)
class Bug:
    """`old`, which is in `file` once, becomes `new`; one of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BUGS = (
    Bug(
        "the last element of K is dropped",
        "csrc/ops/gemm/packed_weights.cc",
        "const int64_t used = k_ * variant_->panel_width",
        "const int64_t used = (k_ - 1) * variant_->panel_width",
        (GEMM,),
    ),
    Bug(
        "tail rows are skipped",
        "csrc/ops/gemm/gemm.cc",
        "for (int64_t i = 0; i < count_; ++i) finish_row(i);",
        "for (int64_t i = 0; i < count_ / 4 * 4; ++i) finish_row(i);",
        (GEMM,),
    ),
    Bug(
        "two channels are swapped",
        "csrc/ops/gemm/packed_weights.cc",
        "stack.row(output + (place >= outputs ? n : 0))",
        "stack.row((output < 2 && n > 1 ? 1 - output : output) + (place >= outputs ? n : 0))",
        (GEMM,),
    ),
    Bug(
        "a mask is off by one",
        "csrc/ops/residual_add/residual_loops.h",
        "term.mask[place * term.mask_stride + position]",
        "term.mask[place * term.mask_stride + (position > 0 ? position - 1 : 0)]",
        ("tests/kernels/test_native_ops.py",),
    ),
    Bug(
        "another epsilon in the group norm",
        "csrc/ops/norm/norm.cc",
        "sum.deviation / sum.count + a_.eps",
        "sum.deviation / sum.count + 10.0 * a_.eps",
        (NORM,),
    ),
    Bug(
        "an unbiased variance",
        "csrc/ops/norm/norm.cc",
        "sum.deviation / sum.count + a_.eps",
        "sum.deviation / (sum.count - 1.0) + a_.eps",
        (NORM,),
    ),
    Bug(
        "sums in bfloat16",
        "csrc/ops/gemm/gemm.cc",
        "        k += depth;",
        "        k += depth;\n        for (int64_t i = 0; i < count_ * stride_; ++i)"
        " sums_[i] = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, sums_[i]) & 0xffff0000u);",
        (GEMM,),
    ),
    Bug(
        "one element behind the end of a row is read",
        "csrc/ops/gemm/tile.h",
        "for (int64_t k = 0; k < a.count; k += V::kDepth)",
        "for (int64_t k = 0; k < a.count + V::kDepth; k += V::kDepth)",
        (GEMM,),
    ),
    Bug(
        "scores without 1 / sqrt(d)",
        "kernels/bridle_kernels/attention/native.py",
        "scale=dim**-0.5 if scale is None else scale",
        "scale=1.0 if scale is None else scale",
        (ATTENTION, "tests/kernels/test_native_ops.py"),
    ),
    Bug(
        "another row's time embedding",
        "csrc/ops/gemm/gemm.cc",
        "row / a_.positions * a_.shift_stride",
        "0 * a_.shift_stride",
        (GEMM,),
    ),
    Bug(
        "a ControlNet's residuals go to the wrong blocks",
        "engine/bridle/networks/controlnet.py",
        'names = [*(f"skip.{k}" for k in range(len(values) - 1)), "mid"]',
        'names = [*(f"skip.{k}" for k in (1, 0, *range(2, len(values) - 1))), "mid"]',
        ("tests/engine/test_pipeline_parity.py",),
    ),
    Bug(
        "noise depends on the place in the batch",
        "engine/bridle/image_tracks.py",
        "noise_source(request.noise, request.seeds[place])",
        "noise_source(request.noise, request.seeds[0] + place)",
        ("tests/engine/test_sampling.py",),
    ),
)


class Copy:
    """A copy of the sources with a core of its own."""

    def __init__(self, place: Path) -> None:
        self._root, self._build = place / "sources", place / "build"
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in files.splitlines():
            (self._root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self._root / name)
        options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        self._call("cmake", "-S", str(self._root), "-B", str(self._build), "-G", "Ninja", *options)

    def build(self) -> None:
        """Brings the core up to date."""
        self._call("cmake", "--build", str(self._build), "--target", "_core")
        (core,) = self._build.glob("_core*")
        shutil.copy2(core, self._root / "kernels/bridle_kernels" / core.name)

    def passes(self, tests: tuple[str, ...]) -> bool:
        """Whether the tests pass in this copy."""
        path = os.pathsep.join(str(self._root / name) for name in ("engine", "kernels", "exporters"))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        run = subprocess.run(command, cwd=self._root, env=environment, capture_output=True)
        if run.returncode not in (0, 1):
            raise RuntimeError(run.stdout.decode() + run.stderr.decode())
        return run.returncode == 0

    def catches(self, bug: Bug) -> bool:
        """Whether the tests notice the bug, which is taken out again."""
        path = self._root / bug.file
        healthy = path.read_text()
        if healthy.count(bug.old) != 1:
            raise RuntimeError(f"{bug.name}: {bug.file} has {healthy.count(bug.old)} of {bug.old!r}, wants 1")
        try:
            path.write_text(healthy.replace(bug.old, bug.new))
            self.build()
            return not self.passes(bug.tests)
        finally:
            path.write_text(healthy)

    def _call(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)


def main() -> int:
    """Says which bugs are caught; 0 if all of them are."""
    chosen = [BUGS[int(number) - 1] for number in sys.argv[1:]] or list(BUGS)
    with tempfile.TemporaryDirectory() as place:
        copy = Copy(Path(place))
        copy.build()
        tests = tuple(dict.fromkeys(name for bug in chosen for name in bug.tests))
        if not copy.passes(tests):
            print("the tests fail without any bug")
            return 1
        caught = {bug.name: copy.catches(bug) for bug in tqdm(chosen, unit="bug")}
    for name, found in caught.items():
        print(f"{'caught' if found else 'MISSED'}  {name}")
    print(f"{sum(caught.values())}/{len(caught)}")
    return 0 if all(caught.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
