"""The CPU benchmark: registries, gates, the merge of reports, and one small run of ours beside PyTorch."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import cpu_networks
import cpu_ops
import cpu_profile
import cpu_start
from bridle.new_model import write_new_model
from bridle_kernels import _core
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.recorder import ProgramFrame, Recorder
from cpu import gates, goals, op_cases, report
from cpu.ceiling import Ceiling, higher, name_for
from cpu.measure import Measurement, Session, interleaved
from cpu.process import Process, SystemFailure
from cpu.runtimes import EXPORTERS, RUNTIMES
from cpu.systems import REFERENCE, SYSTEMS, judges, takes_part
from cpu.workloads import WORKLOADS
from cpu.workspace import Workspace

WHERE = {"date": "2026-11-26", "git": "0000000"}


def test_registries_fit_together() -> None:
    assert {system.runtime for system in SYSTEMS.values()} == {*RUNTIMES, "bridle"}
    assert EXPORTERS.keys() <= RUNTIMES.keys()
    for workload in WORKLOADS.values():
        for name, system in SYSTEMS.items():
            right, torch_own = judges(system, workload)
            assert SYSTEMS[right].dtype == "float32" and SYSTEMS[torch_own].dtype == "bfloat16"
            assert system.gib(workload) > 0.4
            assert takes_part(right, workload)
            if name in REFERENCE["own"]:
                assert takes_part(name, workload) == workload.own_reference


def test_only_chooses_workloads_and_systems() -> None:
    assert cpu_networks.pairs([]).keys() == WORKLOADS.keys()
    chosen = cpu_networks.pairs(["decode:openvino-bf16,bridle-bf16", "step", "step:bridle-bf16"])
    assert list(chosen) == ["step", "decode"]
    assert chosen["decode"] == ["bridle-bf16", "openvino-bf16"]
    assert "bridle-fp32-avx2" in chosen["step"] and "reference-fp32" not in chosen["step"]
    for wrong in ("steps", "step:bridle"):
        with pytest.raises(SystemExit, match="--only: no"):
            cpu_networks.pairs([wrong])


def test_float32_gate() -> None:
    right = {"latents": torch.randn(1, 4, 8, 8)}
    gates.check_float32(gates.distances({"latents": right["latents"] * (1 + 5e-5)}, right))
    for wrong in (right["latents"] * (1 + 2e-4), right["latents"].flip(3), right["latents"] * float("nan")):
        with pytest.raises(gates.GateError, match="relative distance"):
            gates.check_float32(gates.distances({"latents": wrong}, right))
    with pytest.raises(gates.GateError, match="outputs are"):
        gates.distances({"images": right["latents"]}, right)
    with pytest.raises(gates.GateError, match="the reference"):
        gates.distances({"latents": right["latents"][:, :3]}, right)


@pytest.mark.parametrize(("ours", "limit"), [(True, 1.25), (False, 4.0)])
def test_bfloat16_gate(ours: bool, limit: float) -> None:
    torch_own = {"latents": 0.01, "maps": 0.002}
    gates.check_bfloat16({"latents": 0.01 * limit, "maps": 0.001}, torch_own, ours)
    with pytest.raises(gates.GateError, match="maps"):
        gates.check_bfloat16({"latents": 0.01, "maps": 0.0021 * limit}, torch_own, ours)
    with pytest.raises(gates.GateError, match="latents"):
        gates.check_bfloat16({"latents": float("nan"), "maps": 0.002}, torch_own, ours)


def test_merge_keeps_what_was_not_measured_again() -> None:
    first = Measurement(
        {name: {"seconds": 1.0} for name in ("eager-fp32", "bridle-bf16", "openvino-bf16")},
        {("bridle-bf16", "eager-fp32"): 2.0, ("bridle-bf16", "openvino-bf16"): 1.5},
    )
    merged = report.merge({"workloads": {}}, "step", first, WHERE)
    merged = report.merge(merged, "decode", first, WHERE)
    second = Measurement(
        {"bridle-bf16": {"seconds": 0.5}, "eager-fp32": {"problem": "wrong"}}, {("bridle-bf16", "compiled-bf16"): 3.0}
    )
    merged = report.merge(merged, "step", second, {"date": "2026-12-01", "git": "1111111"})
    step, decode = merged["workloads"]["step"], merged["workloads"]["decode"]
    assert decode["ratios"]["bridle-bf16"]["eager-fp32"]["ratio"] == 2.0
    assert step["systems"]["bridle-bf16"] == {"seconds": 0.5, "date": "2026-12-01", "git": "1111111"}
    assert step["systems"]["openvino-bf16"] == {"seconds": 1.0, **WHERE}
    assert step["systems"]["eager-fp32"]["problem"] == "wrong" and "seconds" not in step["systems"]["eager-fp32"]
    ratios = {peer: (entry["ratio"], entry["git"]) for peer, entry in step["ratios"]["bridle-bf16"].items()}
    assert ratios == {"openvino-bf16": (1.5, "0000000"), "compiled-bf16": (3.0, "1111111")}


def measured(isa: str, step: float = 1.6, region: float = 1.05, mib: float = 90.0) -> report.Report:
    """A report of every row that something is required of."""
    where, peers = {"isa": isa, "run_mib": mib}, ("eager-bf16", "compiled-bf16", "openvino-bf16")
    found = report.Report(workloads={})
    for name in WORKLOADS:
        systems = {"bridle-bf16": {**where, "over_step": region if name == "regions-attention" else 1.01}}
        pairs = {("bridle-bf16", peer): step if peer == "openvino-bf16" else 1.8 for peer in peers}
        pairs |= {("bridle-bf16", other): 0.5 for other in ("eager-fp32", "reference-bf16")}
        if name == "step":
            pairs |= {(ours, peer): 1.1 for ours, others in goals.FORCED.items() for peer in others}
        entries = {
            **{
                other: {"run_mib": 10.0} for other in ("eager-fp32", "reference-bf16", "eager-fp32-avx2", *goals.FORCED)
            },
            **{peer: {"run_mib": 100.0} for peer in peers},
            **systems,
        }
        found = report.merge(found, name, Measurement(entries, pairs), WHERE)
    return found


def test_what_is_required_is_met_missed_or_open() -> None:
    def met(**changes: Any) -> dict[str, bool | None]:
        return {entry["name"]: entry["met"] for entry in measured(**{"isa": "amx_bf16", **changes})["required"]}

    every = met()
    assert set(every.values()) == {True} and len(every) == 4 + len(WORKLOADS) + 2
    misses: list[tuple[dict[str, Any], set[str]]] = [
        ({"step": 1.4}, {"step: the fastest peer's time over ours"}),
        ({"region": 1.09}, {"regions-attention: over step"}),
        ({"mib": 101.0}, {key for key in every if "memory" in key}),
    ]
    for change, names in misses:
        assert {key for key, value in met(**change).items() if value is False} == names
    without = met(isa="avx512_bf16", step=1.0)
    assert {key for key, value in without.items() if value is not None} == {key for key in every if "fp32" in key}
    assert {(entry["got"], entry["met"]) for entry in goals.required({})} == {(None, None)}
    for system, lost in (
        ("bridle-bf16", "step: the"),
        ("openvino-bf16", "step: the"),
        ("bridle-fp32-avx2", "fp32-avx2"),
    ):
        failed = Measurement({system: {"problem": "it ended"}})
        again = report.merge(measured("amx_bf16"), "step", failed, WHERE)["required"]
        assert {entry["met"] for entry in again if lost in entry["name"]} == {None}
        assert sum(entry["met"] is None for entry in again) == (2 if system == "bridle-bf16" else 1)
    text = goals.lines(measured("amx_bf16", step=1.4)["required"])
    assert "step: the fastest peer's time over ours: 1.4, at least 1.5: NOT MET" in text and "at most 1.08: met" in text


def test_what_is_required_of_attention_is_asked_of_the_slowest() -> None:
    rows = [
        {"op": op, "shape": "", "dtype": dtype, "ratio": ratio}
        for op, dtype, ratio in (
            ("self-attention", "bfloat16", 2.5),
            ("cross-attention", "bfloat16", 1.9),
            ("cross-attention", "float32", 1.0),
            ("linear", "bfloat16", 1.0),
        )
    ]
    for count, isa, expected in ((4, "amx_bf16", (1.9, False)), (1, "amx_bf16", (2.5, True)), (4, "avx2", (1.9, None))):
        (found,) = goals.required_of_ops(rows[:count], isa)
        assert (found["got"], found["met"]) == expected
    assert goals.required_of_ops([], "amx_bf16")[0]["met"] is None


def smallest(make: Callable[..., Iterator[op_cases.Case]]) -> list[op_cases.Case]:
    """The case of each op that takes least."""
    found: dict[str, op_cases.Case] = {}
    for case in make(_core.ThreadPool(1), torch.float32):
        if case.op not in found or case.flop + case.bytes < found[case.op].flop + found[case.op].bytes:
            found[case.op] = case
    return list(found.values())


@pytest.mark.parametrize("make", op_cases.REGISTRY, ids=lambda make: make.__name__)
def test_cases_of_ops_are_those_of_pytorch(make: Callable[..., Iterator[op_cases.Case]]) -> None:
    for case in smallest(make):
        cpu_ops.check(case)
    for case in smallest(make):
        with pytest.raises(RuntimeError, match="relative distance"):
            cpu_ops.check(dataclasses.replace(case, theirs=lambda case=case: 1.001 * case.theirs()))


def test_an_op_is_timed_beside_its_ceiling() -> None:
    for make, unit in ((op_cases.linear_cases, "gflops"), (op_cases.copy_cases, "gbytes")):
        row = cpu_ops.measure(smallest(make)[0], rounds=1)
        assert row["ratio"] > 0.0 and row[unit] > 0.0 and row[f"torch_{unit}"] > 0.0
        share = cpu_ops.with_share(row, {"float32": 2.0, "copy": 2.0}, "avx2")["of_ceiling"]
        assert share == pytest.approx(row[unit] / 2.0, abs=1e-3)


def test_rounds_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    seconds = interleaved(runs, 2, "test")
    assert order == ["a", "b", "c", "b", "c", "a"]
    assert seconds == {"a": [1.0, 6.0], "b": [2.0, 4.0], "c": [3.0, 5.0]}


def test_what_is_added_to_a_workload_has_its_price_from_the_same_rounds(tmp_path: Path) -> None:
    class Timed:
        def __init__(self, workload: str, system: str, seconds: float) -> None:
            self.workload, self.system, self.run = workload, system, lambda: seconds

        def peak(self) -> dict[str, float]:
            return {"run_mib": 100.0}

    session = Session(Workspace(tmp_path, "tiny"), "capture", threads=1, rounds=1)
    session._found.systems |= {"bridle-bf16": {}, "eager-bf16": {}}
    group = [
        Timed("capture", "bridle-bf16", 4.2),
        Timed("step", "bridle-bf16", 4.0),
        Timed("capture", "eager-bf16", 8.4),
    ]
    session._run_group(group)  # type: ignore[arg-type]
    assert session._found.systems["bridle-bf16"] == {
        **dict.fromkeys(("seconds", "fastest", "slowest"), 4.2),
        **{"over_step": 1.05, "run_mib": 100.0},
    }
    assert "over_step" not in session._found.systems["eager-bf16"]
    assert session._found.pairs == {("bridle-bf16", "eager-bf16"): 2.0}


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    process = Process(Workspace(tmp_path, "tiny"), "step", "bridle-fp32", 1)
    with pytest.raises(SystemFailure, match="ModelLoadError"):
        process.started()
    process.close()


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "networks.json"
    cpu_networks.main(
        [
            *("--size", "tiny", "--threads", "1", "--rounds", "2", "--workspace", str(tmp_path / "workspace")),
            *("--out", str(out), "--only", "step:bridle-fp32,bridle-ort-fp32,eager-fp32"),
        ]
    )
    step = json.loads(out.read_text())["workloads"]["step"]
    for entry in step["systems"].values():
        assert entry["seconds"] > 0.0 and entry["distance"] <= gates.FLOAT32 and entry["run_mib"] > 50.0
        assert entry["threads"] == 1 and entry["versions"]["torch"] == torch.__version__ and entry["git"]
    assert step["ratios"]["bridle-fp32"]["eager-fp32"]["ratio"] > 0.0
    assert "bridle-fp32" in capsys.readouterr().out

    # The same outputs held against others are refused, and nothing of them is timed.
    workspace = Workspace(tmp_path / "workspace", "tiny")
    torch.save({"latents": torch.randn(1, 4, 16, 16)}, workspace.output("step", "eager-fp32"))
    found = Session(workspace, "step", threads=1, rounds=1).measure(["bridle-fp32"])
    assert "relative distance" in found.systems["bridle-fp32"]["problem"] and not found.pairs


def test_a_start_of_a_small_model(tmp_path: Path) -> None:
    write_new_model("tiny", tmp_path / "tiny")
    row = cpu_start.start(str(tmp_path / "tiny"), "float32", steps=1, side=64, cache="off")
    assert all(value > 0.0 for value in row.values())
    assert row["load_seconds"] < row["first_image_seconds"]
    over = row["first_image_seconds"] / (row["load_seconds"] + row["second_image_seconds"])
    assert row["over_load_and_image"] == pytest.approx(over, rel=0.02)


def test_ceilings() -> None:
    with Ceiling() as ceiling:
        found = ceiling.measure(1)
    assert found["copy"] > 0.1 and all(value > 0.1 for value in found.values())
    assert higher({"copy": 1.0, "float32": 5.0}, {"copy": 2.0, "float32": 4.0}) == {"copy": 2.0, "float32": 5.0}
    assert name_for("bfloat16", "avx512_bf16") == "bfloat16" and name_for("bfloat16", "amx") == "amx_bfloat16"


def test_profiles_of_plans() -> None:
    profiles = [
        [("conv2d", 3.0), ("linear", 1.0), ("conv2d", 2.0)],
        [("conv2d", 1.0), ("linear", 2.0), ("conv2d", 2.5)],
    ]
    best = cpu_profile.fastest(profiles)
    assert best == [("conv2d", 1.0), ("linear", 1.0), ("conv2d", 2.0)]
    lines = cpu_profile.table(best, 5.0, top=1).splitlines()
    assert lines[0] == "5.000 s, 4.000 s of it in 3 ops of plans"
    assert lines[1].split() == ["conv2d", "2", "3.000", "s", "75.0%"]
    assert lines[-1].split() == ["2", "conv2d", "2000.0", "ms"]


def test_profiles_say_what_frames_hold() -> None:
    recorder = Recorder()
    heads = recorder.input("x", (1, 64, 16), torch.float32).unflatten(-1, (2, 8))
    attended = NativeOps(recorder, PackedWeights()).attention(heads, (Segment((Piece(heads, heads),)),))
    frame = ProgramFrame(recorder.finish([attended]))
    frame.inputs["x"].zero_()
    with cpu_profile.profiled() as (profile, held):
        for _ in range(2):
            frame.run(_core.ThreadPool(1))
    assert [name for name, _ in profile] == ["self_attention"] * 2
    assert held == {frame.plan: frame.bytes} and frame.bytes > frame.plan.arena_bytes
    sizes = {mock.Mock(arena_bytes=2**20): 3 * 2**19, mock.Mock(arena_bytes=0): 2**19}
    assert cpu_profile.memory(sizes) == "frames of 2 plans: 2.0 MiB, 1.0 of it arenas"
