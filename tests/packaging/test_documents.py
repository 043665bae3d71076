"""What the documents say: paths that exist, commands that run, pins that cover what is installed."""

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image
from typer.testing import CliRunner

from bridle.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = ("engine", "kernels", "exporters", "csrc", "tests", "benchmarks", "examples", "docs")


def source_paths() -> list[str]:
    """Files and, with a slash at the end, folders of the repository."""
    paths = [path for name in SOURCES for path in (ROOT / name).rglob("*")] + [p for p in ROOT.iterdir() if p.is_file()]
    return [path.relative_to(ROOT).as_posix() + ("/" if path.is_dir() else "") for path in paths]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[document.name for document in DOCUMENTS])
def test_paths_exist(document: Path) -> None:
    known = source_paths()
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+(?:\.(?:py|cc|h|md|txt)|/))`", text))
    for path in named:
        assert any(candidate.endswith(path) for candidate in known), path
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (document.parent / target).exists(), target


def test_paths_of_the_documents_are_found_at_all() -> None:
    found = re.findall(r"`([\w./-]+\.py)`", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert len(found) > 10
    assert not any(candidate.endswith("no_such_file.py") for candidate in source_paths())


def command_lines() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.startswith("    ") and ".venv/bin/" in line]


def test_readme_installs_and_makes_a_controlled_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `bridle` commands of the first of the two lines, in a folder from which the repository's files are seen."""
    first = command_lines()[0]
    parts = [shlex.split(part) for part in first.split("&&")]
    assert parts[0] == ["python3", "-m", "venv", ".venv"]
    assert parts[1] == [".venv/bin/pip", "install", "-c", "constraints.txt", "."]
    for name in SOURCES:
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for command, *arguments in parts[2:]:
        assert command == ".venv/bin/bridle"
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == 0, outcome.output
    assert "--control" in parts[-1]
    made = Path(parts[-1][parts[-1].index("-o") + 1])
    assert Image.open(made).convert("L").getextrema()[1] > 0


def test_the_check_runs_the_second_line() -> None:
    """The same installation and the same tests, in a virtual environment of its own."""
    second = command_lines()[1]
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for part in ("-m venv", "-c constraints.txt '.[test]'", "-m pytest -n 2"):
        assert part in second and part in script


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Names of everything that a distribution requires here, except what its dependants pin themselves."""
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    found: set[str] = set()
    for text in requires(name) or ():
        requirement = Requirement(text)
        wanted = any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")
        )
        if wanted and not any(specifier.operator == "==" for specifier in requirement.specifier):
            found |= {canonicalize_name(requirement.name)}
            found |= needed(requirement.name, frozenset(requirement.extras), seen)
    return found


def test_constraints_pin_everything_that_is_installed() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = {canonicalize_name(line.split("==")[0]): Version(line.split("==")[1]) for line in lines}
    names = needed("bridle", frozenset({"test"}), set())
    assert len(names) > 30 and "torch" in names and pins["torch"] == Version("2.13.0")
    for name in names:
        assert name in pins, name
        try:
            installed = Version(version(name))
        except PackageNotFoundError:
            continue
        assert installed.public == pins[name].public, name
