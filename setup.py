"""Builds `bridle_kernels._core` from csrc/ with CMake."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
ROOTS = ("engine", "kernels", "exporters")


class CMakeBuild(build_ext):
    """Configures and builds the one CMake target of the extension."""

    def build_extension(self, ext: Extension) -> None:
        _require_compiler()
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "--fresh", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "_core"], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)


def _require_compiler() -> None:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(candidate.split()[0]) for candidate in candidates):
        sys.exit(
            f"bridle: no C++20 compiler found (looked for {', '.join(candidates)}); install g++ or clang, or set CXX"
        )


packages = {name: root for root in ROOTS for name in find_packages(root)}
setup(
    packages=sorted(packages),
    package_dir={name: f"{root}/{name.replace('.', '/')}" for name, root in packages.items() if "." not in name},
    ext_modules=[Extension("bridle_kernels._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
