"""Every pair of controls: combined it is neither of the two alone, or it is refused by both names."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from control_cases import ADDS_NOTHING, CONTROLS, ONE_FIELD, REFUSED, asked, distance, identical, run
from watched_ops import RefusingOps

import bridle
from bridle.errors import RequestError

PAIRS = [pair for pair in itertools.combinations(CONTROLS, 2) if pair not in REFUSED and pair not in ONE_FIELD]
ROUNDING = 1e-5
"""Of float32 in a batch of other rows."""


@pytest.fixture(scope="module")
def alone(map_engine: bridle.Engine) -> Mapping[str, bridle.Result]:
    """Each control without another, in one batch."""
    results = map_engine.sample([asked(change) for change in CONTROLS.values()])
    return dict(zip(CONTROLS, results, strict=True))


def test_every_control_alone_does_something(map_engine: bridle.Engine, alone: Mapping[str, bridle.Result]) -> None:
    plain = run(map_engine)
    for name, result in alone.items():
        if name == "CaptureMaps":
            assert distance(result, plain) < ROUNDING and set(result.maps) == {"circle", "blue square"}
        else:
            assert distance(result, plain) > 1e-3, name


def assert_is_neither(name: str, other: str, both: bridle.Result, alone: Mapping[str, bridle.Result]) -> None:
    for one in (name, other):
        rest = other if one == name else name
        if rest == "CaptureMaps" or ADDS_NOTHING.get((name, other)) == one:
            assert distance(both, alone[one]) < ROUNDING, (name, other, one)
        else:
            assert distance(both, alone[one]) > 1e-3, (name, other, one)
    if "CaptureMaps" in (name, other):
        rest = other if name == "CaptureMaps" else name
        changed = [abs(both.maps[word] - heat).max() for word, heat in alone["CaptureMaps"].maps.items()]
        assert max(changed) < ROUNDING if rest == "vae_tiling" else max(changed) > 1e-3, rest
    if "PromptEdit" in (name, other):
        assert both.source_latents is not None and not (both.source_latents == both.latents).all()


@pytest.mark.parametrize("name", dict.fromkeys(first for first, _ in PAIRS))
def test_pairs(map_engine: bridle.Engine, alone: Mapping[str, bridle.Result], name: str) -> None:
    """Those of one control with all others in one batch."""
    others = [second for first, second in PAIRS if first == name]
    results = map_engine.sample([asked(CONTROLS[name], CONTROLS[other]) for other in others])
    for other, both in zip(others, results, strict=True):
        assert_is_neither(name, other, both, alone)


def test_every_pair_is_in_one_table() -> None:
    tables = [set(PAIRS), set(REFUSED), set(ONE_FIELD)]
    assert sum(len(table) for table in tables) == len(set().union(*tables)) == 15 * 14 // 2
    assert set(ADDS_NOTHING) <= tables[0]


@pytest.mark.parametrize(("name", "other"), REFUSED)
def test_refused_pairs_name_both(map_folder: Path, name: str, other: str) -> None:
    engine = bridle.load(map_folder, backend="reference")
    engine.backend.ops = RefusingOps()
    with pytest.raises(RequestError) as caught:
        engine.sample(asked(CONTROLS[name], CONTROLS[other]))
    assert caught.value.field == "attention[0]"
    assert name in caught.value.got and REFUSED[name, other] in caught.value.got


def test_the_page_names_every_pair_that_cannot_be_combined() -> None:
    page = (Path(__file__).parents[2] / "docs/controls.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", page.split("## What cannot be combined")[1], re.MULTILINE)
    listed = {(first.strip("`"), second.strip("`")) for first, second in rows[1:]}
    assert set(REFUSED) | set(ONE_FIELD) <= listed


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("ImagePrompt", "PromptEdit"),
        ("ControlNet", "attention regions"),
        ("latent regions", "Views"),
        ("CaptureMaps", "InjectMap mass"),
        ("T2IAdapter", "Views"),
    ],
)
def test_pairs_on_sdxl(xl_map_engine: bridle.Engine, name: str, other: str) -> None:
    chosen = {one: CONTROLS[one] for one in (name, other)}
    first, second, both = xl_map_engine.sample([*(asked(c) for c in chosen.values()), asked(*chosen.values())])
    assert_is_neither(name, other, both, {name: first, other: second})


def test_all_that_can_be_combined_at_once(map_engine: bridle.Engine) -> None:
    """Each of them matters among all others."""
    left_out = ("latent regions", "Views", "inpainting", "CaptureMaps")
    names = [name for name in CONTROLS if name not in left_out]
    every = run(map_engine, *(CONTROLS[name] for name in names))
    without = map_engine.sample([asked(*(CONTROLS[n] for n in names if n != name)) for name in names])
    for name, result in zip(names, without, strict=True):
        assert distance(result, every) > 1e-3, name
    assert identical(run(map_engine, *(CONTROLS[name] for name in [*names, "CaptureMaps"])), every)
