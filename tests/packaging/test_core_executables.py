"""The C++ tests, built from the sources and run."""

import subprocess
import sys
from pathlib import Path

import pybind11

ROOT = Path(__file__).parents[2]


def test_core(tmp_path: Path) -> None:
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", "-DBRIDLE_TESTS=ON", *options]
    subprocess.run(configure, check=True, capture_output=True)
    build = ["cmake", "--build", str(tmp_path), "--target", "plan_test", "thread_pool_test"]
    subprocess.run(build, check=True, capture_output=True)
    run = subprocess.run(["ctest", "--test-dir", str(tmp_path), "--output-on-failure"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
