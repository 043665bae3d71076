"""The one kernel of a step serves whatever an engine asks: terms of the sampler, at the launch of the CUDA backend."""

from pathlib import Path
from typing import Any

import pytest
import torch
from control_cases import CONTROLS, asked
from fake_cuda import PlainCuda
from torch import Tensor

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

import bridle
from bridle import batch
from bridle_kernels.guide_step_blend import reference, triton
from bridle_kernels.kernel_bundle import BundledKernel
from bridle_kernels.triton_kernels import variants

SHORT = {"output_type": "latent", "num_inference_steps": 2}


def short(*changes: dict[str, Any], scheduler: str = "euler", noise: str = "torch") -> bridle.Request:
    return asked(SHORT, *changes, {"scheduler": scheduler, "noise": noise})


BATCHES = {
    "memory that nobody reads": ([short()], {"fields": 0, "slots": 6, "draws": 0}),
    "memory": (
        [short(scheduler="unipc"), short({"num_inference_steps": 5}, scheduler="lms")],
        {"fields": 0, "slots": 6, "draws": 0},
    ),
    "noise of both sources": (
        [short(scheduler="euler a"), short(scheduler="dpm++ 2m sde", noise="philox"), short()],
        {"fields": triton.NOISE.value, "slots": 6, "draws": 1},
    ),
    "a known region": (
        [short(CONTROLS["inpainting"]), short(scheduler="lcm", noise="philox")],
        {"fields": triton.KNOWN.value, "slots": 6, "draws": 1},
    ),
    "regions in views": (
        [short(CONTROLS["latent regions"], CONTROLS["Views"])],
        {"fields": triton.WEIGHTS.value, "slots": 6, "draws": 0},
    ),
}
"""Requests, and what their first step has."""


@pytest.fixture(scope="module")
def plain(map_folder: Path) -> bridle.Engine:
    return bridle.load(map_folder, backend="reference")


def steps(plain: bridle.Engine, monkeypatch: pytest.MonkeyPatch, requests: list[bridle.Request]) -> list[Any]:
    """Of every step: terms, and the arguments and constants that the kernel is started with."""
    started: list[Any] = []
    found: list[Any] = []

    def both(eps: Tensor, **terms: Any) -> tuple[Tensor, Tensor]:
        triton.guide_step_blend(eps, **terms)
        found.append((terms, *started.pop()))
        return reference.guide_step_blend(eps, **terms)

    monkeypatch.setattr(triton, "launch", lambda kernel, grid, *given, fusion: started.append(given))
    backend = PlainCuda(plain.backend.model, torch.device("cpu"), torch.float32)
    backend._guide_step_blend = both
    bridle.Engine(backend, plain.path).sample(requests)
    return found


@pytest.mark.parametrize(
    ("name", "cells"), [*((name, batch.MAX_CELLS) for name in BATCHES), ("memory", 1), ("noise of both sources", 1)]
)
def test_every_step_is_in_a_bundle(
    plain: bridle.Engine, monkeypatch: pytest.MonkeyPatch, name: str, cells: int
) -> None:
    """Rows of the sampler's tables are passed where they lie, also where a step is several parts and no graph copies them. The
    control: a number that is none.
    """
    monkeypatch.setattr(batch, "MAX_CELLS", cells)
    (variant,) = (variant for variant in variants(["guide_step_blend.triton"]) if variant.name.endswith("_fp32"))
    kinds = {argument: kind for argument, kind in variant.signature.items() if kind != "constexpr"}
    kernel = BundledKernel(variant.name, "_kernel", b"", variant.num_warps, 0, kinds, variant.multiples)
    requests, features = BATCHES[name]
    found = steps(plain, monkeypatch, requests)
    assert {feature: found[0][1][feature] for feature in features} == features
    for terms, arguments, constants in found:
        assert constants == variant.constants and kernel.values(arguments) is not None
        tensors = {argument: term for argument, term in terms.items() if isinstance(term, Tensor)}
        assert [name for name, term in tensors.items() if arguments[name].data_ptr() != term.data_ptr()] == []
        assert kernel.values({**arguments, "fields": None}) is None
