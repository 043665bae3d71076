"""The GPU benchmark on a machine without one: its budget, what it keeps of parts that fail, its report and its rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpu_check
from gpu import kernels, models, peers, preflight, rates, report, timings
from gpu.part import Context
from gpu.plot import draw
from gpu.rows import ROWS, side
from gpu.schedule import Part, failures, run_together

PATHS = preflight.import_paths(None)
CHECKS = """
import time
def fails(): assert 1 == 2, "the rule"
def checks(device):
    yield "right", lambda: None
    yield "wrong", fails
    if {hangs}: yield "hangs", lambda: time.sleep(600)
    if {dies}: raise RuntimeError("out of memory")
"""


def context(folder: Path, argument: str = "", device: str = "cpu", seconds: float = 600.0) -> Context:
    import time

    return Context(argument, device, "tiny", folder, time.monotonic() + seconds)


def test_what_parts_found_is_kept_whatever_becomes_of_them(tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text(CHECKS.format(hangs=False, dies=False))
    (tmp_path / "dying.py").write_text(CHECKS.format(hangs=False, dies=True))
    (tmp_path / "hanging.py").write_text(CHECKS.format(hangs=True, dies=False))
    parts = [Part(f"kernels:{name}", 30.0, {"device": "cpu"}) for name in ("fine", "dying", "nowhere")]
    hanging = Part("kernels:hanging", 8.0, {"device": "cpu"})
    fine, dying, nowhere, stopped = run_together([*parts, hanging], tmp_path, [*PATHS, str(tmp_path)], 30.0)
    assert fine["problem"] is None
    for result in (fine, dying, stopped):
        assert [row["name"] for row in result["found"]] == ["right", "wrong"]
        assert [row["problem"] for row in result["found"]] == [None, "AssertionError: the rule"]
    assert "out of memory" in dying["problem"] and "nowhere" in nowhere["problem"]
    assert stopped["problem"] == "stopped after 8 s"
    assert len(failures([fine, dying, nowhere, stopped])) == 6
    (late,) = run_together(parts[:1], tmp_path, PATHS, 0.5)
    assert late["problem"] == "not started: no time was left"


def test_it_names_what_is_missing_and_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "check.json"
    monkeypatch.setattr(preflight, "NEEDED", ("torch", "no_such_module"))
    assert gpu_check.main(["--device", "cpu", "--out", str(out)]) == 2
    found = json.loads(out.read_text())
    assert "no_such_module" in found["missing"] and "--wheels" in found["missing"] and found["parts"] == []
    monkeypatch.setattr(preflight, "NEEDED", ("torch",))
    monkeypatch.setattr(report, "machine", lambda: {"gpu": None})
    assert gpu_check.main(["--out", str(out)]) == 2
    assert "no GPU" in json.loads(out.read_text())["missing"]
    with pytest.raises(preflight.MissingError, match="no wheels"):
        preflight.install_wheels(tmp_path, tmp_path / "site")
    site = tmp_path / "site"
    (site / "no_such_module").mkdir(parents=True)
    assert preflight.missing_modules(["no_such_module"], [site]) == []


def test_the_command_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, gpu_check.__file__, "--device", "cpu", "--size", "tiny", "--only", "rates"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    (rated,) = found["parts"]
    names = [row["name"].split(" ")[0] for row in rated["found"]]
    assert names[0] == "ceilings" and {"attention", "conv2d", "geglu", "linear"} <= set(names)
    assert all(row["problem"] is None for row in rated["found"]) and found["failures"] == []
    assert out.with_suffix(".png").stat().st_size > 5000


def test_a_kernel_that_differs_between_runs_is_told() -> None:
    values = iter(range(1000))
    case = rates.Case("race", lambda: torch.full((2,), float(next(values))), 1, 0)
    found = rates.measured(case, {"bytes_per_s": 1e9, "flops_per_s": 1e9}, "cpu")
    assert found["problem"] == "50 of 50 repeats differ"
    case = rates.Case("nan", lambda: torch.tensor([float("inf")]), 1, 0)
    assert rates.measured(case, {"bytes_per_s": 1e9, "flops_per_s": 1e9}, "cpu")["problem"] == "not finite"


def test_every_module_of_checks_is_run() -> None:
    assert {"gpu_attention_checks", "gpu_noise_checks", "gpu_norm_checks"} <= set(kernels.modules())


def test_rows_cover_what_is_required() -> None:
    families = {(row.family, row.requests) for row in ROWS.values() if row.steps and not row.controlnets}
    assert {(family, count) for family in ("sd15", "sdxl") for count in (1, 4, 8)} <= families
    assert {(row.family, row.controlnets) for row in ROWS.values()} >= {
        ("sd15", 1),
        ("sd15", 3),
        ("sdxl", 1),
        ("sdxl", 3),
    }
    assert {row.region_mode for row in ROWS.values()} == {None, "attention", "latent"}
    assert report.AT_LEAST.keys() | report.AT_MOST.keys() <= ROWS.keys()
    assert side(ROWS["sdxl"], "full") == 128 and side(ROWS["sd15"], "full") == 64


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in ("sd15", "sdxl"):
        list(models.run(context(folder, family)))
        assert models.ready(folder, family)
    return folder


CHEAP = ("sd15-edit", "sd15-image-prompt", "sd15-capture", "sd15-regions-latent", "sd15-decode", "sdxl-controlnets-3")


@pytest.mark.parametrize("name", CHEAP)
def test_ours_and_the_peer_of_a_row_can_be_run(written: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(peers, "DTYPE", torch.float32)
    row = replace(ROWS[name], steps=min(1, ROWS[name].steps))
    with torch.no_grad():
        found = timings.our_run(context(written), row, {})()
        out = peers.build(row, models.folder(written, row.family), "cpu", "tiny", compiled=False)()
    extent = 16 if row.steps else 128
    assert found > 0.0
    assert torch.isfinite(out).all() and out.shape[-2:] == (extent, extent)
    assert out.shape[0] == (row.images if row.steps else 1)


def test_rows_are_timed_in_turns_and_a_broken_system_spoils_no_other(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> timings.Run:
        raise RuntimeError("no such kernel")

    fake = {"ours": lambda: lambda: 0.01, "eager": lambda: lambda: 0.03, "compiled": broken}
    monkeypatch.setattr(timings, "makers", lambda *arguments: fake)
    found = timings.measured(context(written), "sd15", ROWS["sd15"], {})
    assert found["ratios"] == {"eager": 3.0} and found["problem"] == "compiled: RuntimeError: no such kernel"
    assert found["systems"]["ours"]["ms"] == 1.0
    late = list(timings.run(context(written, seconds=1.0)))
    assert {row["left_out"] for row in late} == {"no time was left"} and len(late) == len(ROWS)
    assert all(row["problem"] for row in timings.run(context(written / "nowhere")))


def test_requirements_and_plot(tmp_path: Path) -> None:
    def row(name: str, ours: float, eager: float) -> dict[str, object]:
        systems = {"ours": {"ms": ours, "problem": None}, "eager": {"ms": eager, "problem": None}}
        return {"name": name, "title": name, "systems": systems, "ratios": timings.ratios(systems), "problem": None}

    rows = [row("sd15", 5.0, 10.0), row("sd15-capture", 5.5, 9.0), row("sd15-batch-4", 4.0, 5.0)]
    results = [{"part": "timings", "seconds": 1.0, "problem": None, "found": rows}]
    met = {entry["name"]: entry["met"] for entry in report.requirements(results)}
    assert met == {
        "sd15: faster than every peer": True,
        "sd15-capture: faster than every peer": False,
        "sd15-batch-4: faster than every peer": True,
        "sd15-capture: over the plain row": False,
        "sd15-regions-attention: over the plain row": None,
    }
    assert draw({"parts": results}, tmp_path / "plot.png") and (tmp_path / "plot.png").stat().st_size > 5000
    assert not draw({"parts": []}, tmp_path / "none.png")
    assert "sd15-capture" in report.table(results)
