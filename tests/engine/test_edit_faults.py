"""What ends an edit ends its source, and nobody else: cancellations, callbacks that raise, NaN in one of the two.

Neighbours have the bytes of a run that is evaluated in batches of the same sizes, in which the ended one was healthy and
stopped at the same step. PyTorch rounds by the size of a batch, so runs without it differ by that.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from control_cases import CONTROLS, SOURCE, STEPS, asked, distance

import bridle
from bridle.request_checks import Prepared
from bridle.rows import Rows
from bridle.text_rows import TextRows
from bridle.track import Track

EDIT = asked(CONTROLS["PromptEdit"], {"seed": 8})
NEIGHBOURS = [
    asked(CONTROLS["CaptureMaps"], CONTROLS["InjectMap mass"]),
    asked({"seed": 9, "scheduler": "euler a"}, CONTROLS["Reweight"]),
    asked({"seed": 10, "attention": [bridle.PromptEdit(SOURCE), bridle.CaptureMaps("circle")]}),
    asked(CONTROLS["attention regions"], {"seed": 11}),
]


def counted(engine: bridle.Engine) -> tuple[bridle.Engine, list[int]]:
    """The same engine, and the number of rows of each of its evaluations."""
    seen: list[int] = []

    class RowCounter(type(engine.backend)):
        def evaluate(self, rows: Rows) -> torch.Tensor:
            seen.append(rows.sample.shape[0])
            return super().evaluate(rows)

    backend = RowCounter(engine.backend.model, engine.backend.device, engine.backend.dtype)
    return bridle.Engine(backend, engine.path), seen


def outcomes(engine: bridle.Engine, callback: Callable[[bridle.StepSnapshot], None] | None = None) -> list:
    """An edit between neighbours: one outcome per request."""
    with pytest.raises(bridle.BatchError) as caught:
        engine.sample([*NEIGHBOURS[:2], EDIT, *NEIGHBOURS[2:]], callback=callback)
    return caught.value.results


def others_of(engine: bridle.Engine, step: int) -> list:
    """Of `outcomes`, those of the neighbours of a healthy edit that is cancelled after a step."""
    return [result for result in outcomes(engine, stop_after(step)) if isinstance(result, bridle.Result)]


def assert_same_bytes(ours: list, theirs: list) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one, bridle.Result) and isinstance(other, bridle.Result)
        assert torch.equal(one.latents, other.latents) and np.array_equal(one.images, other.images)
        assert set(one.maps) == set(other.maps)
        for word, heat in one.maps.items():
            assert np.array_equal(heat, other.maps[word])
        assert (one.source_latents is None) is (other.source_latents is None)
        if one.source_latents is not None:
            assert torch.equal(one.source_latents, other.source_latents)


def stop_after(step: int) -> Callable[[bridle.StepSnapshot], None]:
    def callback(snapshot: bridle.StepSnapshot) -> None:
        if snapshot.request_index == 2 and snapshot.step == step:
            snapshot.cancel()

    return callback


def poisoned(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Puts a NaN into the latents that the edit, or its source, starts from."""
    from bridle import engine

    lower = engine.lower_images

    def lower_images(*arguments: object) -> list[Track]:
        tracks: list[Track] = lower(*arguments)
        for track in tracks:
            if track.request_index == 2 and (track.source is None) is (which == "source"):
                track.latents[0, 1, 1] = torch.nan
        return tracks

    monkeypatch.setattr(engine, "lower_images", lower_images)


@pytest.mark.parametrize("step", [1, 2])
def test_a_cancelled_edit_ends_with_its_source(map_engine: bridle.Engine, step: int) -> None:
    """From then on no row of either is evaluated."""
    engine, seen = counted(map_engine)
    results = outcomes(engine, stop_after(step))
    stopped = results.pop(2)
    assert isinstance(stopped, bridle.Cancelled) and stopped.step == step
    others = 2 + 2 + 4 + 2
    assert seen == [others + 4] * step + [others] * (STEPS - step)
    for result, alone in zip(results, map_engine.sample(NEIGHBOURS), strict=True):
        assert distance(result, alone) < 1e-5


@pytest.mark.parametrize("which", ["source", "edit"])
def test_a_nan_in_one_ends_both(map_engine: bridle.Engine, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    healthy = others_of(map_engine, 1)
    engine, seen = counted(map_engine)
    poisoned(monkeypatch, which)
    results = outcomes(engine)
    fault = results.pop(2)
    assert isinstance(fault, bridle.NumericFault) and (fault.step, fault.stage) == (0, "denoise")
    assert seen == [14] + [10] * (STEPS - 1)
    assert_same_bytes(results, healthy)


def test_a_callback_that_raises_ends_both(map_engine: bridle.Engine) -> None:
    def callback(snapshot: bridle.StepSnapshot) -> None:
        if snapshot.request_index == 2 and snapshot.step == 2:
            raise LookupError("the caller's own")

    engine, seen = counted(map_engine)
    results = outcomes(engine, callback)
    assert isinstance(results.pop(2), LookupError)
    assert seen == [14, 14, 10]
    assert_same_bytes(results, others_of(map_engine, 2))


def test_callbacks_see_the_edit_and_not_its_source(map_engine: bridle.Engine) -> None:
    seen: list[tuple[int, int]] = []
    map_engine.sample([EDIT, NEIGHBOURS[1]], callback=lambda s: seen.append((s.request_index, s.step)))
    assert seen == [(index, step) for step in range(1, STEPS + 1) for index in (0, 1)]


def test_one_image_of_an_edit_is_cancelled(map_engine: bridle.Engine) -> None:
    """The request ends with it; a second edit of the same batch does not."""

    def callback(snapshot: bridle.StepSnapshot) -> None:
        if snapshot.request_index == 0 and snapshot.image_index == 1 and snapshot.step == 1:
            snapshot.cancel()

    several = asked(CONTROLS["PromptEdit"], {"seed": 8, "num_images": 2})
    with pytest.raises(bridle.BatchError) as caught:
        map_engine.sample([several, NEIGHBOURS[2]], callback=callback)
    stopped, finished = caught.value.results
    assert isinstance(stopped, bridle.Cancelled)
    assert distance(finished, map_engine.sample(NEIGHBOURS[2])) < 1e-5


@pytest.mark.parametrize("name", ["ImagePrompt", "attention regions", "latent regions", "Views", "CaptureMaps"])
def test_a_nan_in_the_keys_of_a_control_is_its_own(
    map_engine: bridle.Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Neighbours with controls of the same kind, which share its kernels' calls, keep their bytes."""
    requests = [asked(CONTROLS[name], {"seed": 20}), NEIGHBOURS[0], asked(CONTROLS[name], {"seed": 21})]

    def cancel_first(snapshot: bridle.StepSnapshot) -> None:
        if snapshot.request_index == 0:
            snapshot.cancel()

    def others(callback: Callable[[bridle.StepSnapshot], None] | None) -> tuple[Exception, list]:
        with pytest.raises(bridle.BatchError) as caught:
            map_engine.sample(requests, callback=callback)
        first, *rest = caught.value.results
        return first, rest

    cancelled, healthy = others(cancel_first)
    assert isinstance(cancelled, bridle.Cancelled)
    poison_keys(monkeypatch, seed=20)
    fault, ours = others(None)
    assert isinstance(fault, bridle.NumericFault) and fault.step == 0
    assert_same_bytes(ours, healthy)


def poison_keys(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Puts a NaN into a value of one request: of its last segment, or of its text."""
    from bridle import engine

    lower = engine.lower_controls

    def lower_controls(backend: object, prepared: Prepared, text: TextRows) -> None:
        lower(backend, prepared, text)
        if prepared.request.seed == seed:
            for row in text.rows:
                kv = row.segments[-1].kv if row.segments else row.kv
                kv[0].v[0, 0] = torch.nan

    monkeypatch.setattr(engine, "lower_controls", lower_controls)
