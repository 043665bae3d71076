"""guide_step_blend: every variant of this CPU against the acceptance rule, and bit for bit against its definition."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bridle_kernels import _core, available_isas
from bridle_kernels.counter_noise import standard_normal
from bridle_kernels.guide_step_blend import guide_step_blend, native, reference
from numerics import Guarded, assert_as_good_as_peer, assert_integer_exact, poisoned

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (1, 3, 7, 8, 9, 15, 16, 17, 33)
each_isa = pytest.mark.parametrize("isa", available_isas())


@dataclass(frozen=True)
class Case:
    """Sizes of a random case. views: terms cover windows of the latents, with weights and wrapping columns. draws: of each
    sample."""

    samples: int = 2
    rows: int = 5
    channels: int = 3
    height: int = 5
    width: int = 9
    history: int = 2
    views: bool = False
    known: bool = True
    noise: bool = True
    draws: int = 0


def arguments(case: Case, seed: int, dtype: torch.dtype = torch.float32, integers: bool = False) -> dict[str, Any]:
    """Fresh inputs of the op."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        if integers:
            return torch.randint(-4, 5, shape, generator=generator).float()
        return torch.randn(shape, generator=generator)

    def whole(low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, max(high, low + 1), (count,), generator=generator).int()

    counts = whole(1, 5, case.samples)
    terms = int(counts.sum())
    h, w = (max(1, case.height - 2), max(1, case.width - 3)) if case.views else (case.height, case.width)
    image = (case.samples, case.channels, case.height, case.width)
    return {
        "eps": values(case.rows, case.channels, h, w).to(dtype),
        "term_start": torch.cat([torch.zeros(1), counts.cumsum(0)]).int(),
        "term_row": whole(0, case.rows, terms),
        "term_coefficient": values(terms),
        "term_weight": whole(-1, 2, terms) if case.views else torch.full((terms,), -1).int(),
        "term_top": whole(0, case.height - h + 1, terms),
        "term_left": whole(0, case.width, terms) if case.views else torch.zeros(terms).int(),
        "weights": values(2, h, w) if case.views else None,
        "latents": values(*image),
        "history": values(case.samples, case.history, *image[1:]) if case.history else None,
        "coefficients": values(case.samples, 3 + case.history),
        "noise": values(*image) if case.noise else None,
        "noise_source": sources(case.samples, generator) if case.draws else None,
        "noise_scale": values(case.samples, case.draws) if case.draws else None,
        "known": values(*image) if case.known else None,
        "known_noise": values(*image) if case.known else None,
        "known_coefficients": values(case.samples, 2) if case.known else None,
        "mask": (values(case.samples, 1, *image[2:]) > 0).float() if case.known else None,
        "has_known": whole(0, 2, case.samples) if case.known else None,
    }


def sources(samples: int, generator: torch.Generator) -> Tensor:
    """Seeds of all 64 bits, and steps."""
    seeds = torch.randint(-(2**63), 2**63 - 1, (samples,), generator=generator)
    return torch.stack([seeds, torch.randint(0, 1000, (samples,), generator=generator)], dim=1)


def converted(given: dict[str, Any], change: Any) -> dict[str, Any]:
    return {k: change(v) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}


def magnitudes(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The op over absolute values: the sum of the magnitudes of all terms."""
    absolute = {**converted(given, lambda v: v.double().abs()), **noise_magnitude(given)}
    if given["mask"] is None:
        return reference.guide_step_blend(**absolute)
    ones = {**absolute, "known": None, "known_noise": None, "known_coefficients": None, "mask": None, "has_known": None}
    x, m = reference.guide_step_blend(**ones)
    k = absolute["known_coefficients"][:, :, None, None, None]
    return x + k[:, 0] * absolute["known"] + k[:, 1] * absolute["known_noise"], m


def noise_magnitude(given: dict[str, Any]) -> dict[str, Tensor | None]:
    """What is given and every draw, as the noise that is given."""
    if given["noise_source"] is None:
        return {}
    total = torch.zeros_like(given["latents"]).double() if given["noise"] is None else given["noise"].double().abs()
    for p, (seed, step) in enumerate(given["noise_source"].tolist()):
        for draw, scale in enumerate(given["noise_scale"][p].tolist()):
            drawn = standard_normal(seed, step, draw, tuple(total.shape[1:]), torch.float64)
            total[p] += drawn.abs().to(total.device) * abs(scale)
    return {"noise": total, "noise_source": None, "noise_scale": None}


CASES = [
    *(Case(width=width) for width in WIDTHS),
    *(Case(width=width, views=True, known=False) for width in (5, 16, 31)),
    Case(samples=1, rows=1, channels=1, height=1, width=1, history=0, known=False, noise=False),
    Case(samples=5, rows=9, channels=4, height=8, width=65, history=6, views=True),
    Case(samples=3, channels=4, height=16, width=33, history=0, known=False, noise=False, draws=1),
    Case(samples=3, width=31, views=True, draws=2),
    Case(height=64, width=64),
    Case(height=37, width=40, history=0),
]
"""The last two are lines that are joined to several rows."""


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_acceptance(isa: str, dtype: torch.dtype, case: Case) -> None:
    given = arguments(case, seed=hash(case) % 1000, dtype=dtype)
    exact = reference.guide_step_blend(**converted(given, lambda v: v.double()))
    peer = reference.guide_step_blend(**given)
    ours = native.guide_step_blend(**given, isa=isa)
    for one, best, other, magnitude in zip(ours, exact, peer, magnitudes(given), strict=True):
        assert_as_good_as_peer(one, best, other, magnitude, depth=24)
        assert torch.equal(one, other)


@each_isa
@pytest.mark.parametrize("case", CASES[:12], ids=str)
def test_integers_are_exact(isa: str, case: Case) -> None:
    given = arguments(case, seed=7, integers=True)
    exact = reference.guide_step_blend(**converted(given, lambda v: v.double()))
    for one, best in zip(native.guide_step_blend(**given, isa=isa), exact, strict=True):
        assert_integer_exact(one, best)


LAYOUTS = {
    "offset": lambda v: torch.cat([poisoned((3,)).to(v.dtype), v.flatten()])[3:].view(v.shape),
    "every second": lambda v: torch.stack([v, torch.full_like(v, float("nan"))], dim=-1)[..., 0],
    "transposed": lambda v: v.transpose(-1, -2).contiguous().transpose(-1, -2),
    "gap in rows": lambda v: torch.cat([v, torch.full_like(v, float("nan"))], dim=-1)[..., : v.shape[-1]],
}


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("views", [True, False], ids=["views", "whole"])
def test_layouts_give_the_bytes_of_the_copy(isa: str, dtype: torch.dtype, layout: Any, views: bool) -> None:
    """Lines of whole images are joined where they follow each other, and only there."""
    given = arguments(Case(views=views), seed=3, dtype=dtype)
    strided = {k: layout(v) if isinstance(v, Tensor) and v.ndim >= 3 else v for k, v in given.items()}
    for one, other in zip(native.guide_step_blend(**strided, isa=isa), native.guide_step_blend(**given), strict=True):
        assert torch.equal(one, other)


def plain_arrays(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {k: v for k, v in given.items() if v is None or v.ndim >= 3}
    for made in ("noise_source", "noise_scale"):
        del tensors[made]
    arrays = {k: v.numpy() for k, v in given.items() if v is not None and v.ndim < 3}
    empty = np.zeros(0, np.float32)
    return tensors, {"known_coefficients": empty, "has_known": empty, **arrays}


@each_isa
def test_expanded_and_negative_strides_and_guards(isa: str) -> None:
    given = arguments(Case(known=False), seed=5)
    given["eps"] = given["eps"][:1].expand(5, -1, -1, -1)
    want = reference.guide_step_blend(**given)
    tensors, arrays = plain_arrays(given)
    for name in ("known", "known_noise", "mask"):
        tensors[name] = None
    backwards = given["latents"].numpy()[..., ::-1].copy()[..., ::-1]
    assert backwards.strides[-1] < 0
    out, model_output = (Guarded.make(tuple(given["latents"].shape)) for _ in range(2))
    outputs = {"out": out.tensor, "model_output": model_output.tensor}
    _core.guide_step_blend({**tensors, "latents": backwards, **outputs}, arrays, isa)
    for guarded, other in zip((out, model_output), want, strict=True):
        guarded.check()
        assert torch.equal(guarded.tensor, other)


@each_isa
def test_nan_reaches_what_depends_on_it_and_nothing_else(isa: str) -> None:
    clean = arguments(Case(samples=4, noise=False), seed=11)
    clean["coefficients"][1, 0] = 0.0
    base = native.guide_step_blend(**clean, isa=isa)
    for sample in (0, 1):
        given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in clean.items()}
        given["latents"][sample, 1, 2, 3] = float("inf") if sample == 1 else float("nan")
        given["mask"][sample] = 1.0
        clean_masked = {**clean, "mask": given["mask"]}
        want = native.guide_step_blend(**clean_masked, isa=isa)[0]
        changed = ~torch.eq(native.guide_step_blend(**given, isa=isa)[0], want)
        assert changed.sum() == (1 if sample == 0 else 0)
    assert torch.isfinite(base[0]).all()


@each_isa
@pytest.mark.parametrize("draws", [0, 2])
def test_a_sample_does_not_depend_on_its_mates(isa: str, draws: int) -> None:
    given = arguments(Case(samples=6, rows=12, draws=draws), seed=13)
    together = native.guide_step_blend(**given, isa=isa)
    for p in range(6):
        first, last = int(given["term_start"][p]), int(given["term_start"][p + 1])
        alone = {
            k: (v[first:last] if k.startswith("term_") else v[p : p + 1]) if isinstance(v, Tensor) else v
            for k, v in given.items()
            if k not in ("eps", "term_start")
        }
        start = torch.tensor([0, last - first]).int()
        solo = native.guide_step_blend(given["eps"], term_start=start, **alone, isa=isa)
        assert torch.equal(solo[0][0], together[0][p]) and torch.equal(solo[1][0], together[1][p])


SEEDED_BUGS = {
    "another row": lambda g: {**g, "term_row": (g["term_row"] + 1) % g["eps"].shape[0]},
    "dropped last column": lambda g: {**g, "eps": torch.cat([g["eps"][..., :-1], g["eps"][..., :1] * 0], dim=-1)},
    "mask off by one": lambda g: {**g, "mask": g["mask"].roll(1, -1), "has_known": g["has_known"] * 0 + 1},
    "channels swapped": lambda g: {**g, "latents": g["latents"].flip(1)},
    "noise of another request": lambda g: {**g, "noise": g["noise"].flip(0)},
    "coefficient in bfloat16": lambda g: {**g, "coefficients": g["coefficients"].bfloat16().float()},
}


def other_source(given: dict[str, Any], change: tuple[int, int]) -> dict[str, Any]:
    return {**given, "noise_source": given["noise_source"] + torch.tensor([change])}


DRAW_BUGS = {
    "seed of another image": lambda g: other_source(g, (1, 0)),
    "high word of the seed dropped": lambda g: other_source(g, (2**32, 0)),
    "noise of another step": lambda g: other_source(g, (0, 1)),
    "draws swapped": lambda g: {**g, "noise_scale": g["noise_scale"].flip(1)},
    "noise that is given dropped": lambda g: {**g, "noise": None},
}


@pytest.mark.parametrize(
    ("case", "bug"),
    [
        *(pytest.param(Case(), bug, id=name) for name, bug in SEEDED_BUGS.items()),
        *(pytest.param(Case(draws=2), bug, id=name) for name, bug in DRAW_BUGS.items()),
    ],
)
def test_seeded_bugs_are_caught(case: Case, bug: Any) -> None:
    given = arguments(case, seed=17)
    exact = reference.guide_step_blend(**converted(given, lambda v: v.double()))
    peer = reference.guide_step_blend(**given)
    wrong = reference.guide_step_blend(**bug(given))
    with pytest.raises(AssertionError, match="rule"):
        for one, best, other, magnitude in zip(wrong, exact, peer, magnitudes(given), strict=True):
            assert_as_good_as_peer(one, best, other, magnitude, depth=24)


def test_the_reference_serves_what_the_kernel_does_not() -> None:
    given = arguments(Case(), seed=19)
    given["latents"].requires_grad_(True)
    x, _ = guide_step_blend(**given)
    x.sum().backward()
    assert given["latents"].grad is not None
    doubled = converted(arguments(Case(), seed=19), lambda v: v.double())
    assert guide_step_blend(**doubled)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda g: g["term_row"].fill_(99), "term_row"),
        (lambda g: g["term_top"].fill_(99), "term_top"),
        (lambda g: g["term_weight"].fill_(5), "term_weight"),
        (lambda g: g.update(noise=g["noise"][:, :, 1:]), "noise"),
        (lambda g: g.update(mask=g["known"]), "mask"),
        (lambda g: g.update(coefficients=g["coefficients"][:, 1:]), "coefficients"),
        (lambda g: g.update(noise_scale=torch.ones(2, 1)), "noise_source"),
        (lambda g: g.update(noise_source=torch.ones(2, 2).long()), "noise_scale"),
        (lambda g: g.update(noise_source=torch.ones(2, 2).long(), noise_scale=torch.ones(3, 1)), "noise_scale"),
    ],
)
def test_bad_arguments_are_named(change: Any, name: str) -> None:
    given = arguments(Case(), seed=23)
    change(given)
    with pytest.raises(ValueError, match=f"guide_step_blend: .*{name}"):
        guide_step_blend(**given)


def test_other_threads_run_meanwhile() -> None:
    given = arguments(Case(samples=4, rows=8, channels=4, height=512, width=512, known=False), seed=29)
    running, ticks = threading.Event(), [0]

    def count() -> None:
        while not running.is_set():
            ticks[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    before = ticks[0]
    native.guide_step_blend(**given)
    after = ticks[0]
    running.set()
    thread.join()
    assert after > before


def isa_in_child(name: str) -> subprocess.CompletedProcess[str]:
    code = "import bridle_kernels as k; print(k.active_isa())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "BRIDLE_FORCE_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )


def test_forced_isa() -> None:
    for name in [*available_isas(), "emulated_amx"]:
        assert isa_in_child(name).stdout.strip() == name
    for name in {"avx2", "avx512", "amx_bf16", "mmx"} - set(available_isas()):
        outcome = isa_in_child(name)
        assert outcome.returncode != 0 and "BRIDLE_FORCE_ISA" in outcome.stderr
