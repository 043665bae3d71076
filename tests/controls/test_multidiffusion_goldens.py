"""Views and latent regions against vectors computed with the official MultiDiffusion (tests/goldens/multidiffusion)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from golden_loops import BACKENDS, GoldenLoop, Watched, run
from torch import Tensor

from bridle.controls import bootstrapping, regions, views
from bridle.lowering import RowPlan, Window
from bridle.region import Region, Views

VIEWS = Views(window=128, stride=32)
FACTOR = 8


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def golden(case: str, backend: str) -> GoldenLoop:
    return GoldenLoop.read(f"multidiffusion/{case}", backend)


def canvas(case: GoldenLoop) -> tuple[int, int]:
    height, width = case.fields["canvas_latent"]
    return height, width


def windows(case: GoldenLoop) -> tuple[Window, ...]:
    found = views.windows(case.backend, VIEWS, canvas(case))
    corners = [[w.top, w.top + w.height, w.left, w.left + w.width] for w in found]
    assert corners == case.outputs["views"].tolist()
    return found


def guided(case: GoldenLoop, rows: Sequence[RowPlan], outputs: Tensor, window: Window) -> dict[int, Tensor]:
    """The guided output of every prompt that the view evaluates; 0 is the prompt of the whole canvas."""
    found: dict[int, Tensor] = {}
    for row, output in zip(rows, outputs, strict=True):
        if row.window == window:
            prompt = 0 if row.region is None else row.region + 1
            found[prompt] = found.get(prompt, torch.zeros_like(output)) + row.coefficient * output
    return found


def test_panorama(backend: str) -> None:
    case = golden("public-panorama", backend)
    texts = case.inputs["text_embeddings"]
    plain = [case.row(texts[0], False), case.row(texts[1], True)]
    found, noise = windows(case), case.inputs["draw.initial_latent"][0]
    rows = views.split(plain, found, canvas(case))
    assert len(rows) == 2 * len(found)
    watched = Watched(case.backend)
    (latents,) = run(watched, [case.track(rows, noise)])
    case.close(guided(case, rows, watched.outputs[0], found[0])[0][None], "eps.first_view")
    for step, got in enumerate(latents, 1):
        case.close(got[None], f"latents.{step}")
    (whole,) = run(case.backend, [case.track(plain, noise)])
    assert float((whole[0] - latents[0]).abs().max()) > 1.0


def region_rows(case: GoldenLoop) -> list[RowPlan]:
    """Of every view and prompt, before bootstrapping."""
    texts, masks = case.inputs["text_embeddings"], case.inputs["masks"][:, 0].numpy()
    prompts = len(masks)
    areas = [Region(str(p), mask=np.kron(masks[p], np.ones((FACTOR, FACTOR)))) for p in range(1, prompts)]

    def encode(index: int, conditional: bool) -> RowPlan:
        return case.row(texts[1 + index + prompts * conditional], conditional)

    plain = [case.row(texts[0], False), case.row(texts[prompts], True)]
    size = (canvas(case)[0] * FACTOR, canvas(case)[1] * FACTOR)
    rows = regions.latent_rows(case.backend, areas, case.fields["guidance_scale"], plain, encode, size)
    return views.split(rows, windows(case), canvas(case))


def backgrounds(case: GoldenLoop) -> Tensor:
    drawn = bootstrapping.Backgrounds(
        case.inputs["draw.background_rgb"], case.inputs["draw.background_posterior_noise"]
    )
    with torch.inference_mode():
        return bootstrapping.encode_backgrounds(case.backend, drawn, range(len(drawn.colours)), False)


def bootstrapped(case: GoldenLoop, rows: Sequence[RowPlan]) -> list[RowPlan]:
    return bootstrapping.bootstrap_rows(
        rows,
        list(case.inputs["masks"][1:, 0]),
        windows(case),
        case.inputs["draw.bootstrap_index"],
        backgrounds(case),
        case.inputs["draw.initial_latent"][0],
    )


def test_backgrounds(backend: str) -> None:
    case = golden("public-region", backend)
    case.close(backgrounds(case), "background_latents")


def test_regions(backend: str) -> None:
    case = golden("public-region", backend)
    rows, found = bootstrapped(case, region_rows(case)), windows(case)
    noise = case.inputs["draw.initial_latent"][0]
    watched = Watched(case.backend)
    (latents,) = run(watched, [case.track(rows, noise)])
    for step, got in enumerate(latents, 1):
        case.close(got[None], f"latents.{step}")
    places = {"eps.first_view": (0, found[0]), "eps.last_view_last_step": (-1, found[-1])}
    for name, (step, window) in places.items():
        for prompt, eps in guided(case, rows, watched.outputs[step], window).items():
            case.close(eps, name, torch.tensor(prompt))
    (without,) = run(case.backend, [case.track([replace(row, bootstrap=None) for row in rows], noise)])
    assert float((without[-1] - latents[-1]).abs().max()) > 1.0


def test_views_of_empty_regions_are_left_out(backend: str) -> None:
    case = golden("public-region", backend)
    masks = case.inputs["masks"][:, 0]
    touched = sum(bool(window.cut(mask).any()) for window in windows(case) for mask in masks)
    assert touched < len(windows(case)) * len(masks)
    assert len(region_rows(case)) == 2 * touched
