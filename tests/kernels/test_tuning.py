"""Autotuning as data: what is chosen, kept, looked up and refused. No GPU is measured here."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

import triton
from typer.testing import CliRunner

import bridle
from bridle.cli import app
from bridle_kernels import tuning
from bridle_kernels.attention import Piece, Segment, gpu
from bridle_kernels.attention import triton as forward_kernels
from bridle_kernels.attention.launch import bucket, column_tiles, gradient_tiles, is_sound, tiles
from bridle_kernels.attention.tune import CASES, choices
from bridle_kernels.triton_launch import Launch
from bridle_kernels.triton_variant import DTYPES, kernel_hash
from bridle_kernels.tuning import Entry, TuningError, fastest, read, use, write

RULE = {"queries": 64, "keys": 64}
OTHERS = [{"queries": 32, "keys": 64}, {"queries": 128, "keys": 32}]


def entry(**changes: Any) -> Entry:
    """What was measured of 77 keys of head dimension 40 in float32 on this device."""
    choice = {"queries": 16, "keys": 16, "warps": 2, "stages": 1}
    fields = (triton.__version__, str(torch.__version__), kernel_hash(forward_kernels._forward), choice, 8.0, 10.0)
    return replace(Entry("attention", bucket(40, 77, False), "fp32", "cpu", *fields), **changes)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    found: list[Launch] = []
    monkeypatch.setattr(Launch, "compile_and_run", lambda launch: found.append(launch))
    yield found
    use([])


def attend(keys: int = 77, dtype: torch.dtype = torch.float32) -> None:
    q, k = torch.zeros(1, 40, 2, 40, dtype=dtype), torch.zeros(1, keys, 2, 40, dtype=dtype)
    gpu.attention(q, [Segment((Piece(k, k),))])


def test_a_launch_takes_what_was_measured(launched: list[Launch]) -> None:
    use([entry()])
    attend()
    (one,) = launched
    assert (one.constants["BLOCK_N"], one.constants["BLOCK_L"], one.num_warps, one.num_stages) == (16, 16, 2, 1)
    assert one.grid == (3, 2, 1), "40 queries"
    assert (one.constants["LOW"], one.constants["HIGH"]) == (32, 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "group_norm"},
        {"bucket": bucket(40, 4096, False)},
        {"dtype": "fp16"},
        {"device": "NVIDIA H200"},
        {"triton": "0.1"},
        {"torch": "0.1"},
        {"kernel": "0" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_was_measured_of_another_is_not_taken(changes: dict[str, str], launched: list[Launch]) -> None:
    use([entry(**changes)])
    attend()
    rule = tiles(40, torch.float32, 77, False)
    (one,) = launched
    assert (one.constants["BLOCK_N"], one.constants["BLOCK_L"]) == (rule.queries, rule.keys)
    assert (one.num_warps, one.num_stages) == (rule.warps, rule.stages)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_was_measured_and_is_not_sound_is_not_taken(dtype: torch.dtype, launched: list[Launch]) -> None:
    """Two blocks of a head dimension as products of warp groups, which the compiler gets wrong."""
    for queries, taken in ((64, tiles(40, dtype, 77, False).queries), (16, 16)):
        choice = {"queries": queries, "keys": 16, "warps": 4, "stages": 1}
        use([entry(dtype=DTYPES[dtype], choice=choice)])
        attend(dtype=dtype)
        assert launched[-1].constants["BLOCK_N"] == taken
    use([entry(choice={"queries": 64, "keys": 16, "warps": 4, "stages": 1})])
    attend()
    assert launched[-1].constants["BLOCK_N"] == 64, "float32 has no warp groups"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", [gradient_tiles, column_tiles])
def test_rules_of_gradients_and_columns_are_sound(rule: Callable[..., Any], dtype: torch.dtype) -> None:
    for dim in (8, 16, 32, 40, 64, 80, 96, 128, 160):
        t = rule(dim, dtype)
        assert is_sound((t.low, t.high), t.queries, t.warps), dim


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rule_is_sound_and_takes_a_text_at_once_where_that_fits(dtype: torch.dtype) -> None:
    for dim, keys, biased in product((40, 64, 80, 96, 111, 128, 160, 200, 256), (77, 4096), (False, True)):
        t = tiles(dim, dtype, keys, biased)
        assert is_sound((t.low, t.high), t.queries, t.warps)
    assert [tiles(dim, dtype, 77, False).keys for dim in (40, 64, 80, 160, 200)] == [64, 128, 32, 128, 64]


def test_the_fastest_by_its_median_is_chosen() -> None:
    times = {32: iter([9.0, 9.0, 50.0, 9.0, 9.0]), 128: iter([1.0, 12.0, 12.0, 12.0, 12.0])}
    asked: list[int] = []

    def timer(choice: tuning.Choice) -> float:
        asked.append(choice["queries"])
        return next(times[choice["queries"]]) if choice["queries"] in times else 10.0

    assert fastest(RULE, [RULE, *OTHERS], timer) == (OTHERS[0], 9.0, 10.0)
    assert asked == [64, 32, 128] * tuning.ROUNDS, "in turns, the rule once"


def test_the_rule_stays_where_nothing_is_clearly_faster() -> None:
    close = {64: 10.0, 32: 9.85, 128: 10.0}
    assert fastest(RULE, OTHERS, lambda choice: close[choice["queries"]])[0] == RULE
    clear = {**close, 32: 9.75}
    assert fastest(RULE, OTHERS, lambda choice: clear[choice["queries"]])[0] == OTHERS[0], "the control"


def test_what_does_not_run_is_left_out() -> None:
    def timer(choice: tuning.Choice) -> float:
        if choice["queries"] == 32:
            raise RuntimeError("out of shared memory")
        return float(choice["queries"])

    assert fastest(RULE, OTHERS, timer)[0] == RULE
    with pytest.raises(RuntimeError, match="the rule itself"):
        fastest(OTHERS[0], [RULE], timer)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    entries = [entry(), entry(dtype="fp16", microseconds=3.5)]
    write(tmp_path / "tuning.json", entries)
    assert read(tmp_path / "tuning.json") == entries
    assert len((tmp_path / "tuning.json").read_text().splitlines()) == 4, "one entry a line"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 1, "entries": []}',
        '{"format": 2, "entries": [{}]}',
        '{"format": 2, "entries": {"0": 1}}',
    ],
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TuningError, match=r"t\.json"):
        read(tmp_path / "t.json")
    with pytest.raises(bridle.ModelLoadError, match=r"t\.json"):
        bridle.load(tuning=tmp_path / "t.json")


@pytest.mark.parametrize("changes", [{"choice": {"queries": -1}}, {"microseconds": "fast"}, {"op": 3}])
def test_an_entry_of_other_types_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "t.json", [entry()])
    document = json.loads((tmp_path / "t.json").read_text())
    document["entries"][0].update(changes)
    (tmp_path / "t.json").write_text(json.dumps(document))
    with pytest.raises(TuningError):
        read(tmp_path / "t.json")


def test_every_choice_is_a_tile_of_the_kernel() -> None:
    for case in CASES:
        found = list(choices(case))
        assert len(found) > 20
        assert all(set(choice) == {"queries", "keys", "warps", "stages"} for choice in found)


def test_the_command_wants_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = CliRunner().invoke(app, ["tune-kernels", str(tmp_path / "t.json")])
    assert outcome.exit_code == 2 and "GPU" in outcome.output and not (tmp_path / "t.json").exists()
