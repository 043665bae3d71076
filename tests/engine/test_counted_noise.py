"""`Request.noise="philox"`: whose noise it is, that nobody else matters to it, and that a step makes it from numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from control_cases import CONTROLS, asked
from fake_cuda import PlainCuda
from runs import rel_l2
from torch import Tensor

import bridle
from bridle import noise, sampler
from bridle.backends.reference import ReferenceBackend
from bridle.controls import bootstrapping
from bridle.rows import Rows, StepTerms
from bridle_kernels.guide_step_blend.reference import total_noise

CPU = torch.device("cpu")
COUNTED = {"noise": "philox", "scheduler": "euler a", "num_inference_steps": 4, "output_type": "latent"}
SEED = 5
COLOURS = [[16225928, 5910405, 3743808], [8723360, 8243101, 15060491]]
PICKS = [[[5, 11, 13, 5, 11, 14], [14, 17, 16, 6, 17, 9]], [[6, 3, 10, 4, 3, 4], [7, 15, 15, 1, 9, 17]]]
"""Of `SEED`: colours of two backgrounds times 2^24, and choices among 20 in two steps, two views and six regions."""
DRAWING = ("euler a", "ddpm", "lcm", "dpm++ 2m sde")


@pytest.fixture(scope="module")
def reference(map_folder: Path) -> bridle.Engine:
    """Every image by itself."""
    return bridle.load(map_folder, backend="reference", deterministic=True)


@pytest.fixture(scope="module", params=["reference", "cpu", "cuda"])
def engine(request: pytest.FixtureRequest, reference: bridle.Engine, map_folder: Path) -> bridle.Engine:
    if request.param == "cuda":
        return bridle.Engine(PlainCuda(reference.backend.model, CPU, torch.float32, alone=True), reference.path)
    return bridle.load(map_folder, backend=request.param, deterministic=True)


def counted(**changes: object) -> bridle.Request:
    return replace(asked(), **{**COUNTED, **changes})


def latents(engine: bridle.Engine, *requests: bridle.Request) -> list[Tensor]:
    return [result.latents for result in engine.sample(list(requests))]


@contextmanager
def watched_terms(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StepTerms]]:
    """The terms of every step."""
    found: list[StepTerms] = []
    step = ReferenceBackend.step

    def kept(backend: ReferenceBackend, parts: Sequence[Rows], terms: StepTerms) -> tuple[Tensor, Tensor]:
        found.append(terms)
        return step(backend, parts, terms)

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceBackend, "step", kept)
        yield found


@pytest.mark.parametrize("scheduler", DRAWING)
def test_backends_agree_and_mates_do_not_matter(
    engine: bridle.Engine, reference: bridle.Engine, scheduler: str
) -> None:
    """Alone, among images of the same source, and beside one whose noise the host draws."""
    request = counted(scheduler=scheduler)
    (alone,) = latents(engine, request)
    mates = [replace(request, seed=9, num_inference_steps=6), replace(request, seed=8)]
    drawn = replace(request, noise="torch")
    assert rel_l2(alone, latents(reference, request)[0]) <= 1e-4
    assert torch.equal(latents(engine, *mates, request)[2], alone)
    assert torch.equal(latents(engine, mates[0], request, drawn)[1], alone)
    assert torch.equal(latents(engine, request, drawn)[1], latents(engine, drawn)[0])
    assert rel_l2(alone, latents(engine, drawn)[0]) > 0.1


def test_images_of_a_request_are_those_of_their_seeds(engine: bridle.Engine) -> None:
    both = latents(engine, counted(num_images=2, seed=2**64 - 1))[0]
    assert torch.equal(both[1:], latents(engine, counted(seed=0))[0]) and rel_l2(both[:1], both[1:]) > 0.1


def noises(reference: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Of length 1: the initial latents and the noise of each step, of two images."""
    with watched_terms(monkeypatch) as found:
        reference.sample([counted(num_images=2)])
    made = [found[0].latents]
    for terms in found[:-1]:
        assert terms.noise is None, "the host sends none"
        total = total_noise(terms.latents, terms.noise, terms.noise_source, terms.noise_scale)
        assert total is not None
        made.append(total)
    every = torch.cat(made).double().flatten(1)
    return list(torch.nn.functional.normalize(every, dim=1))


def largest_correlation(found: list[Tensor]) -> float:
    """Times the square root of the number of elements, of any two."""
    products = torch.stack(found) @ torch.stack(found).T
    return float((products - torch.eye(len(found))).abs().max()) * found[0].numel() ** 0.5


def test_no_two_noises_of_a_run_are_alike(reference: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images, of steps, and of the start. The controls: a counter without the step, and seeds that are one seed."""
    found = noises(reference, monkeypatch)
    assert len(found) == 2 * (1 + 3)
    assert largest_correlation(found) < 5
    counters = noise.counters
    for spoil in (lambda c: c * [1, 0], lambda c: c * [0, 1]):
        with monkeypatch.context() as patch:
            patch.setattr(sampler, "counters", lambda source, steps, spoil=spoil: spoil(counters(source, steps)))
            assert largest_correlation(noises(reference, monkeypatch)) > 10


@pytest.mark.parametrize("name", ["image-to-image", "inpainting", "PromptEdit", "latent regions"])
def test_every_kind_of_start(engine: bridle.Engine, reference: bridle.Engine, name: str) -> None:
    request = replace(asked(CONTROLS[name]), **COUNTED)
    (found,) = latents(engine, request)
    assert rel_l2(found, latents(reference, request)[0]) <= 1e-4
    assert rel_l2(found, latents(engine, replace(request, noise="torch"))[0]) > 0.01
    assert torch.equal(found, latents(engine, counted(seed=1), request)[1])


def test_noise_of_the_start_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    source = noise.noise_source("philox", 5)
    drawn = [source.start(draw, (1, 4, 8, 8)) for draw in noise.StartDraw]
    assert largest_correlation([torch.nn.functional.normalize(one.flatten().double(), dim=0) for one in drawn]) < 5
    assert torch.equal(source.start(noise.StartDraw.LATENTS, (1, 4, 8, 8)), drawn[0])


@pytest.mark.parametrize("name", noise.SOURCES)
def test_the_source_of_an_edit_has_the_same_noise(name: str) -> None:
    source = noise.noise_source(name, 2**64 - 1)
    source.start(noise.StartDraw.IMAGE, (3,))
    twin = source.again()
    assert torch.equal(source.start(noise.StartDraw.LATENTS, (5,)), twin.start(noise.StartDraw.LATENTS, (5,)))
    assert source.seed == twin.seed
    assert torch.equal(source.uniform(noise.StartDraw.COLOURS, (3,)), twin.uniform(noise.StartDraw.COLOURS, (3,)))
    assert torch.equal(source.choices((2, 1, 3), 20), twin.choices((2, 1, 3), 20))


def test_steps_of_all_numbers_are_one_program(reference: bridle.Engine) -> None:
    """Seeds, steps and coefficients are data, also where the last step has no noise."""
    engine = bridle.Engine(PlainCuda(reference.backend.model, CPU, torch.float32), reference.path)
    for change in ({}, {"seed": 2**64 - 1}, {"num_inference_steps": 7}, {"scheduler": "lcm"}):
        engine.sample(counted(**change))
    assert engine.backend.captures == 1


def test_a_solver_without_noise_has_no_counters(reference: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched_terms(monkeypatch) as found:
        reference.sample(counted(scheduler="euler"))
    assert found and all(terms.noise_source is None and terms.noise is None for terms in found)


def test_backgrounds_of_a_generator_are_drawn_in_the_official_order() -> None:
    """Written out: colours, a draw for each background, the initial latents, a choice for every step and view."""
    generator = torch.Generator().manual_seed(SEED)
    colours = torch.rand((4, 3), generator=generator)
    draws = torch.cat([torch.randn((1, 4, 3, 5), generator=generator) for _ in range(4)])
    latents = torch.randn((1, 4, 3, 9), generator=generator)
    picks = torch.stack([torch.randint(0, 4, (2,), generator=generator) for _ in range(3 * 2)]).reshape(3, 2, 2)
    source = noise.noise_source("torch", SEED)
    found = bootstrapping.draw_backgrounds(4, (3, 5), 4, source)
    assert torch.equal(found.colours, colours) and torch.equal(found.draws, draws)
    assert torch.equal(source.start(noise.StartDraw.LATENTS, (1, 4, 3, 9)), latents)
    assert torch.equal(bootstrapping.draw_picks(3, 4, 2, 2, source), picks)


def picks(seed: int, steps: int, views: int, regions: int) -> Tensor:
    return bootstrapping.draw_picks(steps, 20, views, regions, noise.noise_source("philox", seed))


def test_counted_backgrounds_are_these() -> None:
    """Whole numbers, thus the same everywhere."""
    found = bootstrapping.draw_backgrounds(2, (3, 5), 4, noise.noise_source("philox", SEED))
    assert (found.colours * 2**24).int().tolist() == COLOURS
    assert picks(SEED, 2, 2, 6).tolist() == PICKS


def test_counted_backgrounds_depend_on_nothing_else() -> None:
    """Not on other draws, nor on how many steps, views, regions and backgrounds there are."""
    source = noise.noise_source("philox", SEED)
    before = bootstrapping.draw_backgrounds(3, (3, 5), 4, source)
    source.start(noise.StartDraw.LATENTS, (1, 4, 3, 9))
    after = bootstrapping.draw_backgrounds(5, (3, 5), 4, source)
    assert torch.equal(before.colours, after.colours[:3]) and torch.equal(before.draws, after.draws[:3])
    many = picks(SEED, 7, 5, 4)
    assert torch.equal(picks(SEED, 3, 2, 1), many[:3, :2, :1])
    for other in (picks(SEED + 1, 7, 5, 4), many.roll(1, 0), many.roll(1, 1), many.roll(1, 2)):
        assert not torch.equal(other, many)


def test_counted_backgrounds_are_evenly_chosen_and_independent() -> None:
    """Shares within five standard deviations, and no draw that is another's."""
    counts = torch.bincount(picks(SEED, 100, 20, 10).flatten(), minlength=20).double()
    assert len(counts) == 20 and (counts / 1000 - 1).abs().max() < 5 / 1000**0.5
    source = noise.noise_source("philox", SEED)
    colours = source.uniform(noise.StartDraw.COLOURS, (1000, 3)).double()
    assert colours.min() >= 0 and colours.max() < 1
    assert (colours.mean(0) - 0.5).abs().max() < 5 / 12000**0.5
    drawn = [*bootstrapping.draw_backgrounds(3, (8, 8), 4, source).draws]
    drawn += [source.start(draw, (4, 8, 8)) for draw in list(noise.StartDraw)[:3]]
    assert largest_correlation([torch.nn.functional.normalize(one.flatten().double(), dim=0) for one in drawn]) < 5


def test_counted_images_ask_no_generator(reference: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before the first step nor in one, with all that is drawn. The control: images that are not counted do."""

    def refused(*arguments: object, **named: object) -> None:
        raise AssertionError("a generator")

    request = counted(**CONTROLS["latent regions"], **CONTROLS["inpainting"])
    reference.sample(request)  # The solver's table is kept: diffusers draws while it is made.
    for name in ("Generator", "rand", "randn", "randint"):
        monkeypatch.setattr(torch, name, refused)
    reference.sample(request)
    with pytest.raises(AssertionError, match="a generator"):
        reference.sample(replace(request, noise="torch"))
