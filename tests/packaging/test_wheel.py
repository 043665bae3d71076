"""What the built distribution holds, and what it leaves alone."""

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the sources with this environment's build tools."""
    import shutil

    pytest.importorskip("pybind11")
    source = tmp_path_factory.mktemp("source") / "bridle"
    kept = ("engine", "kernels", "exporters", "csrc")
    source.mkdir()
    for name in kept:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = source.parent / "dist"
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(build, check=True, env={**os.environ, "PATH": path})
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_only_the_three_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bridle", "bridle_kernels", "bridle_exporters"}


def test_every_module_and_marker_is_in_it(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for root in ("engine", "kernels", "exporters"):
        for file in (ROOT / root).rglob("*.py"):
            assert file.relative_to(ROOT / root).as_posix() in names
    for package in ("bridle", "bridle_kernels", "bridle_exporters"):
        assert f"{package}/py.typed" in names
    assets = [file for file in (ROOT / "engine" / "bridle" / "assets").rglob("*") if file.is_file()]
    assert len(assets) > 10
    assert {file.relative_to(ROOT / "engine").as_posix() for file in assets} <= names
    assert any(name.startswith("bridle_kernels/_core.") and name.endswith(".so") for name in names)


def test_metadata(wheel: zipfile.ZipFile) -> None:
    """Python 3.11 to 3.13, torch from 2.9, Apache-2.0 with its text, and the command."""
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    supported = SpecifierSet(metadata["Requires-Python"])
    assert [f"3.{minor}" in supported for minor in range(10, 15)] == [False, True, True, True, False]
    assert metadata["Name"] == "bridle" and metadata["License-Expression"] == "Apache-2.0"
    assert "torch>=2.9" in metadata.get_all("Requires-Dist")
    assert any(name.startswith(info) and name.endswith("LICENSE") for name in wheel.namelist())
    assert "bridle = bridle.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_source_roots_are_not_importable(tmp_path: Path) -> None:
    code = "from importlib.util import find_spec; print([find_spec(n) for n in ('engine', 'exporters', 'csrc')])"
    assert run(code, tmp_path).stdout.strip() == "[None, None, None]"


def test_the_folder_named_kernels_disturbs_nobody() -> None:
    code = "import transformers, diffusers; from diffusers import UNet2DConditionModel; print('fine')"
    outcome = run(code, ROOT, PYTHONPATH=str(ROOT))
    assert outcome.stdout.strip().endswith("fine"), outcome.stderr[-2000:]


def test_importing_the_kernels_does_not_import_triton(tmp_path: Path) -> None:
    code = "import sys, bridle_kernels, bridle_kernels.guide_step_blend as g; print('triton' in sys.modules)"
    assert run(code, tmp_path).stdout.strip() == "False"


@pytest.mark.parametrize("environment", [{"CXX": "/nonexistent/c++"}, {"CXX": "", "PATH": "/nonexistent"}])
def test_no_compiler_is_one_clear_line(tmp_path: Path, environment: dict[str, str]) -> None:
    build = [
        sys.executable,
        str(ROOT / "setup.py"),
        "-q",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "-t",
        str(tmp_path),
    ]
    outcome = subprocess.run(
        build, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    lines = [line for line in outcome.stderr.splitlines() if "bridle:" in line]
    assert outcome.returncode != 0 and len(lines) == 1 and "C++20" in lines[0]
    assert "Traceback" not in outcome.stderr
