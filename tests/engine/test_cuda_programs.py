"""The programs of `backend="cuda"` with graphs and streams that only count: padding, captures, joins, and no waiting."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from control_cases import CONTROLS, SOURCE, Changes, asked
from fake_cuda import PlainCuda
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import bridle
from bridle import sampler
from bridle.backends import static_rows, step_programs
from bridle.backends.buckets import bucket
from bridle.progress import bars_shown, showing_bars
from bridle.rows import Residual

CPU = torch.device("cpu")
PLAIN = {"output_type": "latent", "num_inference_steps": 4}
BLENDED = {"attention": [bridle.PromptEdit(SOURCE, local_blend=bridle.LocalBlend("red circle", "red square"))]}
ALL = [name for name in CONTROLS if name != "vae_tiling"]


@pytest.fixture(scope="module")
def reference(map_folder: Path) -> bridle.Engine:
    return bridle.load(map_folder, backend="reference")


@pytest.fixture
def engine(reference: bridle.Engine) -> bridle.Engine:
    """New: nothing is captured yet."""
    return fresh(reference)


def fresh(reference: bridle.Engine, **options: bool) -> bridle.Engine:
    return bridle.Engine(PlainCuda(reference.backend.model, CPU, torch.float32, **options), reference.path)


def latents(engine: bridle.Engine, *requests: bridle.Request) -> list[torch.Tensor]:
    return [result.latents for result in engine.sample(list(requests))]


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(float((a - b).norm()) <= 1e-4 * float(b.norm()) for a, b in zip(ours, theirs, strict=True))


def plain(count: int) -> list[bridle.Request]:
    return [replace(asked(), seed=seed, **PLAIN) for seed in range(count)]


def test_buckets_rise_and_have_room() -> None:
    sizes = [bucket(count) for count in range(1, 100)]
    assert sizes == sorted(sizes) and all(size >= count for count, size in enumerate(sizes, 1))
    assert len(set(sizes[:64])) == 11 and all(size <= 1.5 * count for count, size in enumerate(sizes, 1))


@pytest.mark.parametrize("name", ALL)
def test_every_control_alone_and_padded(reference: bridle.Engine, engine: bridle.Engine, name: str) -> None:
    """Five images are ten rows, in places for twelve."""
    request = replace(asked(CONTROLS[name]), output_type="latent", num_inference_steps=2)
    requests = [replace(request, seed=seed) for seed in range(5)]
    assert close(latents(engine, request), latents(reference, request))
    assert close(latents(engine, *requests), latents(reference, *requests))


def test_all_controls_in_one_padded_batch(reference: bridle.Engine, engine: bridle.Engine) -> None:
    requests = [replace(asked(CONTROLS[name]), output_type="latent") for name in ALL]
    ours, theirs = engine.sample(requests), reference.sample(requests)
    assert close([r.latents for r in ours], [r.latents for r in theirs])
    for one, other in zip(ours, theirs, strict=True):
        assert one.maps.keys() == other.maps.keys()
        for word, heat in one.maps.items():
            assert abs(heat - other.maps[word]).max() < 1e-4


@pytest.mark.parametrize(
    "name", ["plain", "ControlNet", "ImagePrompt", "PromptEdit", "attention regions", "inpainting"]
)
def test_what_lies_in_the_padding_reaches_nobody(
    reference: bridle.Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """NaN in every padded number and other rows in every padded index change no bit; in a row that is used they do."""
    request = replace(asked(CONTROLS.get(name, {})), output_type="latent", num_inference_steps=2)
    requests = [replace(request, seed=seed) for seed in range(5)]
    wanted = latents(fresh(reference), *requests)

    def spoiled(leaf: static_rows.Leaf) -> torch.Tensor:
        value = torch.nan if leaf.tensor.is_floating_point() else 1
        return torch.full(leaf.room, value, dtype=leaf.tensor.dtype)

    monkeypatch.setattr(static_rows, "_place", spoiled)
    assert all(torch.equal(a, b) for a, b in zip(latents(fresh(reference), *requests), wanted, strict=True))
    monkeypatch.setattr(static_rows, "_fill", lambda place, tensor, last: None)
    failed = fresh(reference)
    with pytest.raises(bridle.BatchError):
        failed.sample(requests)


def test_a_program_that_served_more_rows_serves_fewer(reference: bridle.Engine, engine: bridle.Engine) -> None:
    for count in (6, 5, 6):
        assert close(latents(engine, *plain(count)), latents(reference, *plain(count)))
    assert engine.backend.captures == 1


def test_other_numbers_are_no_other_program(engine: bridle.Engine) -> None:
    first = replace(asked(CONTROLS["ControlNet"]), **PLAIN)
    engine.sample(first)
    (net,) = first.controls
    for change in (
        {"prompt": "a blue star", "negative_prompt": "grey"},
        {"guidance_scale": 2.0},
        {"controls": [replace(net, scale=0.25)]},
        {"num_inference_steps": 7},
        {"seed": 11},
        {"scheduler": "euler"},
        {"scheduler": "dpm++ 2m"},
        {"scheduler": "unipc"},
    ):
        engine.sample(replace(first, **change))
    assert engine.backend.captures == engine.backend.graphs.captures == 1
    assert engine.backend.graphs.replays == 4 * 8 + 7
    engine.sample(replace(first, controls=[replace(net, start=0.5)]))
    assert engine.backend.captures == 2, "steps without the ControlNet have a program of their own"
    engine.sample(
        [
            replace(first, controls=[replace(net, start=0.25, end=0.75)]),
        ]
    )
    assert engine.backend.captures == 2
    engine.sample(replace(first, width=128))
    assert engine.backend.captures == 3, "the control"


@pytest.mark.parametrize("name", ["ImagePrompt", "Reweight", "InjectMap bias", "attention regions"])
def test_strengths_of_other_controls_are_data(engine: bridle.Engine, name: str) -> None:
    engine.sample(replace(asked(CONTROLS[name]), **PLAIN))
    before = engine.backend.captures
    changed = {
        "ImagePrompt": lambda c: {"controls": [replace(c["controls"][0], scale=0.3)]},
        "Reweight": lambda c: {"attention": [bridle.Reweight("circle", 0.5)]},
        "InjectMap bias": lambda c: {"attention": [replace(c["attention"][0], strength=0.2)]},
        "attention regions": lambda c: {**c, "base_ratio": 0.5},
    }[name](CONTROLS[name])
    engine.sample(replace(asked(changed), **PLAIN))
    assert engine.backend.captures == before


WORDS = "a yellow moon right of a small green star"
"""Another prompt: its words stand elsewhere and have other numbers of tokens. The tiny models' tokens are mostly letters."""

MOON_EDIT = bridle.PromptEdit(WORDS.replace("moon", "ring"))
OTHER_WORDS: dict[str, tuple[Changes, Changes]] = {
    "one token and two": (
        {"prompt": "a circle", "attention": [bridle.CaptureMaps("a")]},
        {"attention": [bridle.CaptureMaps("of")]},
    ),
    "CaptureMaps": (CONTROLS["CaptureMaps"], {"attention": [bridle.CaptureMaps(["yellow moon", "of"])]}),
    "Reweight": (CONTROLS["Reweight"], {"attention": [bridle.Reweight("green star", 0.5)]}),
    "InjectMap bias": (
        CONTROLS["InjectMap bias"],
        {"attention": [bridle.InjectMap("green star", box=(0.0, 0.5, 1.0, 1.0))]},
    ),
    "InjectMap mass": (
        CONTROLS["InjectMap mass"],
        {"attention": [bridle.InjectMap("of", box=(0.0, 0.5, 1.0, 1.0), mode="mass", strength=0.4)]},
    ),
    "PromptEdit": (CONTROLS["PromptEdit"], {"attention": [MOON_EDIT]}),
    "local blend": (BLENDED, {"attention": [replace(MOON_EDIT, local_blend=bridle.LocalBlend("moon", "yellow ring"))]}),
}
"""Of each control, a first request and what changes to another one of the prompt above."""


@pytest.mark.parametrize("name", OTHER_WORDS)
def test_other_words_are_no_other_program(reference: bridle.Engine, engine: bridle.Engine, name: str) -> None:
    """And the image through the program of the first words is the reference's."""
    first, changed = (replace(asked(changes), **PLAIN) for changes in OTHER_WORDS[name])
    engine.sample(first)
    before = engine.backend.captures
    other = replace(changed, prompt=WORDS)
    ours, theirs = engine.sample(other), reference.sample(other)
    assert engine.backend.captures == before
    assert close([ours.latents], [theirs.latents]) and ours.maps.keys() == theirs.maps.keys()
    assert all(abs(heat - theirs.maps[word]).max() < 1e-4 for word, heat in ours.maps.items())


def test_more_words_than_there_is_room_for_are_another_program(engine: bridle.Engine) -> None:
    for words, captures in (("of", 1), ("circle", 1), (["circle", "left"], 2)):
        engine.sample(replace(asked({"attention": [bridle.CaptureMaps(words)]}), **PLAIN))
        assert engine.backend.captures == captures, "2, 6 and 10 tokens"


def test_other_windows_of_an_edit_are_no_other_program(engine: bridle.Engine) -> None:
    """As long as their steps have the same features. The control has steps of self-attention's maps alone."""
    for edit, captures in (
        (bridle.PromptEdit(SOURCE, cross=0.5, self=0.25), 3),
        (bridle.PromptEdit(SOURCE, cross=(0.25, 1.0), self=(0.5, 0.75)), 3),
        (bridle.PromptEdit(SOURCE, cross={"circle": 0.75, "default_": 0.5}, self=0.25), 3),
        (bridle.PromptEdit(SOURCE, cross=0.25, self=0.75), 4),
    ):
        engine.sample(replace(asked({"attention": [edit]}), **PLAIN))
        assert engine.backend.captures == captures


def test_programs_are_bounded(reference: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridle.backends.cuda.PROGRAMS", 2)
    engine = fresh(reference)
    for width in (64, 72, 80, 64):
        engine.sample(replace(asked(), **PLAIN, width=width))
    assert engine.backend.captures == 4 and len(engine.backend._programs._programs) == 2


def test_what_cannot_be_captured_runs_and_is_counted(
    reference: bridle.Engine, engine: bridle.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(run: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine.backend.graphs.capture = refuse
    assert close(latents(engine, *plain(2)), latents(reference, *plain(2)))
    assert engine.backend.uncaptured == 1 and "not permitted" in caplog.text


def test_branches_are_joined_before_the_middle(engine: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    log = engine.backend.log
    monkeypatch.setattr("bridle.networks.unet.run_middle", lambda *a: log.append("middle") or original(*a))
    from bridle.networks.trunk import run_middle as original

    net = CONTROLS["ControlNet"]["controls"][0]
    engine.sample(replace(asked({"controls": [net, replace(net, scale=0.4)]}), **{**PLAIN, "num_inference_steps": 1}))
    assert log == ["fork 2", "middle", "join"] * 2, "a capture and a replay"
    log.clear()
    engine.sample(replace(asked(CONTROLS["T2IAdapter"]), **{**PLAIN, "num_inference_steps": 1}))
    assert set(log) == {"fork 0", "middle", "join"}


def test_late_residuals_are_waited_for_once() -> None:
    calls: list[str] = []
    one = (Residual(torch.zeros(1, 1, 1, 1), torch.ones(1)),)
    found = step_programs.LateResiduals({"block.1": one, "mid": one}, frozenset({"mid"}), lambda: calls.append("join"))
    assert found.get("block.1") == one and "mid" in found and found.get("skip.3") is None and calls == []
    assert found["mid"] == one and found.get("mid") == one and calls == ["join"]
    found.join()
    assert calls == ["join"] and len(found) == 2 and set(found) == {"block.1", "mid"}


MAKE_TENSOR = torch.tensor


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: a value that it reads, and a copy that is not queued."""

    READS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "equal", "masked_select", "unique", "resolve_conj")
    """The last is what `tolist` begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name.removeprefix("aten::")
        moved = name in ("to", "_to_copy") and any(
            isinstance(a, torch.device) for a in (*args, *(kwargs or {}).values())
        )
        waits = moved and not (kwargs or {}).get("non_blocking", False) and True not in args[2:]
        if name in self.READS or waits:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What steps wait for: reads of values, and copies that are not queued."""
    found: list[str] = []
    whole = sampler._step

    def tensor(*args, **kwargs):  # type: ignore[no-untyped-def]
        if kwargs.get("device") is not None:
            found.append("torch.tensor on a device")
        return MAKE_TENSOR(*args, **kwargs)

    def step(*arguments):  # type: ignore[no-untyped-def]
        with Waits() as waits, pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "tensor", tensor)
            outcome = whole(*arguments)
        found.extend(waits.found)
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(sampler, "_step", step)
        yield found


QUIET = ["ControlNet", "T2IAdapter", "ImagePrompt", "inpainting", "CaptureMaps", "Reweight", "InjectMap bias", "InjectMap mass",
         "PromptEdit", "local blend", "attention regions", "latent regions", "Views"]  # fmt: skip


@pytest.mark.parametrize("name", QUIET)
def test_no_step_waits_for_the_device(engine: bridle.Engine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The definitions that stand in for kernels here read values of their own: they run before the watch, and are replayed."""
    monkeypatch.setattr(engine.backend.graphs, "capture", kept_outputs)
    changes = BLENDED if name == "local blend" else CONTROLS[name]
    request = replace(asked(changes), output_type="latent", num_inference_steps=4)
    with watched_steps(monkeypatch) as found:
        drawn = replace(request, seed=9, scheduler="euler a")
        engine.sample([request, drawn, replace(drawn, noise="philox")])
    assert found == []


def kept_outputs(run):  # type: ignore[no-untyped-def]
    """A graph whose replays cost nothing: what is watched is the host's side alone."""
    with _disable_current_modes(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", MAKE_TENSOR)
        outputs = run()
    return lambda: tuple(output.nan_to_num() for output in outputs)


def test_the_watch_sees_waiting(
    reference: bridle.Engine, engine: bridle.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a step that reads a value, and one that sends a tensor and waits."""
    monkeypatch.setattr(engine.backend.graphs, "capture", kept_outputs)
    terms = sampler._State.terms

    def spoil(read):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(sampler._State, "terms", lambda state: (read(state.latents), terms(state))[1])
        with watched_steps(monkeypatch) as found:
            engine.sample(replace(asked(), **PLAIN))
        return set(found)

    assert spoil(lambda x: bool(x.sum() > 0)) == {"is_nonzero"}
    assert spoil(lambda x: float(x.sum())) and spoil(lambda x: x[0, 0, 0].tolist()) and spoil(lambda x: x.nonzero())
    assert spoil(lambda x: torch.ones(1).to(x.device)) and spoil(lambda x: torch.tensor([1], device=x.device))
    assert spoil(lambda x: torch.ones(1).to(x.device, non_blocking=True)) == set()


def test_a_fault_is_told_with_its_step_when_its_batch_ends(engine: bridle.Engine) -> None:
    """The host does not look at values between steps; who is told what does not change."""
    shape = (1, 4, 6, 8)
    poisoned = replace(asked(), **PLAIN, latents=torch.full(shape, 3e38), scheduler="euler")
    with pytest.raises(bridle.BatchError) as caught:
        engine.sample([*plain(1), poisoned])
    good, bad = caught.value.results
    assert isinstance(good, bridle.Result)
    assert close([good.latents], latents(engine, *plain(1)))
    assert isinstance(bad, bridle.NumericFault) and bad.step == 0 and bad.stage == "denoise"


def test_warming_up_captures_ahead(engine: bridle.Engine) -> None:
    request = replace(asked(CONTROLS["PromptEdit"]), **PLAIN)
    engine.warm_up(request)
    before = engine.backend.captures
    engine.sample(replace(request, seed=3, prompt="a blue ring left of a red star"))
    assert before > 1 and engine.backend.captures == before


@pytest.mark.parametrize("method", ["warm_up", "sample"])
def test_captures_have_a_bar_where_one_is_asked_for(
    reference: bridle.Engine, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    """By the call, not when the engine was made. By default there is none: standard error is no terminal here."""
    request, bar = replace(asked(), **{**PLAIN, "num_inference_steps": 1}), "capturing 2 rows of 6x8"
    engine = fresh(reference)
    getattr(engine, method)(request, progress=True)
    assert bar in capsys.readouterr().err
    getattr(engine, method)(request, progress=True)
    assert bar not in capsys.readouterr().err, "nothing is captured"
    for progress in (False, None):
        getattr(fresh(reference), method)(request, progress=progress)
        assert capsys.readouterr().err == ""


def test_bars_are_those_of_a_thread_and_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with showing_bars(False), ThreadPoolExecutor(1) as other:
        assert not bars_shown() and other.submit(bars_shown).result()
    assert bars_shown()


def test_deterministic_images_know_nothing_of_each_other(reference: bridle.Engine) -> None:
    """One by one through the same program: the bits are those of the request alone, whoever is beside it."""
    exact = fresh(reference, alone=True)
    needle = replace(asked(CONTROLS["ControlNet"]), **PLAIN)
    mates = [*plain(2), replace(asked(CONTROLS["PromptEdit"]), **PLAIN), replace(asked(), **PLAIN, num_images=2)]
    (alone,) = latents(exact, needle)
    for place in (0, 2, 4):
        assert torch.equal(latents(exact, *mates[:place], needle, *mates[place:])[place], alone)
    assert exact.backend.log == [], "nothing runs beside anything"


def test_deterministic_is_a_word_for_every_backend(map_folder: Path) -> None:
    exact = bridle.load(map_folder, backend="reference", deterministic=True)
    (alone,) = latents(exact, *plain(1))
    assert torch.equal(latents(exact, *plain(5))[0], alone)


def test_a_deeper_solver_beside_it_changes_no_bit(map_folder: Path) -> None:
    """The history of a batch is as long as its deepest solver's; the order of a sum over it is each solver's own."""
    exact = bridle.load(map_folder, backend="reference", deterministic=True)
    request = replace(asked(), **{**PLAIN, "num_inference_steps": 6}, scheduler="unipc")
    (alone,) = latents(exact, request)
    assert torch.equal(latents(exact, request, replace(request, scheduler="pndm"))[0], alone)
