"""Checks of the noise that the step's Triton kernel makes: on a GPU, or in Triton's interpreter on the CPU."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bridle_kernels.counter_noise import standard_normal
from bridle_kernels.guide_step_blend.triton import guide_step_blend
from numerics import assert_as_good_as_peer

SHAPE = (4, 31, 33)
SOURCES = ((0, 1), (2**63 - 1, 1), (-1, 1000), (5, 2**32 - 1), (5 + 2**32, 2), (5, 2))
"""Seeds, those of 2^63 and more as negative numbers, and steps."""
Check = tuple[str, Callable[[], None]]


def made(sources: tuple[tuple[int, int], ...], scales: Tensor, device: str) -> Tensor:
    """[P, 4, 31, 33]: the kernel's step of samples that are zero, which is their noise. scales: [P, J]."""
    count = len(sources)
    zeros = torch.zeros(count, *SHAPE, device=device)
    zero = torch.zeros(count, dtype=torch.int32, device=device)
    return guide_step_blend(
        zeros,
        term_start=torch.arange(count + 1, dtype=torch.int32, device=device),
        term_row=torch.arange(count, dtype=torch.int32, device=device),
        term_coefficient=torch.ones(count, device=device),
        term_weight=zero - 1,
        term_top=zero,
        term_left=zero,
        weights=None,
        latents=zeros,
        history=None,
        coefficients=torch.tensor([[1.0, 1.0, 1.0]], device=device).repeat(count, 1),
        noise=None,
        noise_source=torch.tensor(sources, device=device),
        noise_scale=scales.to(device),
        known=None,
        known_noise=None,
        known_coefficients=None,
        mask=None,
        has_known=None,
    )[0]


def checks(device: str) -> Iterator[Check]:
    """Names, and functions that raise AssertionError."""
    for source in SOURCES:
        yield f"noise of seed and step {source}", lambda source=source: accepted(source, device)
    yield "noise does not depend on other images", lambda: alone(device)


def accepted(source: tuple[int, int], device: str) -> None:
    """The acceptance rule for the second of two draws, of an image whose last block is not full."""
    scales = torch.tensor([[0.0, 1.0]])
    ours, again = made((source,), scales, device)[0], made((source,), scales, device)[0]
    assert torch.equal(ours, again), "two runs differ"
    with torch.device(device):
        exact, peer = (standard_normal(*source, 1, SHAPE, dtype) for dtype in (torch.float64, torch.float32))
    assert_as_good_as_peer(ours, exact, peer, exact.abs(), depth=8)


def alone(device: str) -> None:
    """Six images at once have the bits that each has by itself, and no two are alike."""
    scales = torch.randn(len(SOURCES), 2, generator=torch.Generator().manual_seed(1))
    together = made(SOURCES, scales, device)
    for place, source in enumerate(SOURCES):
        assert torch.equal(made((source,), scales[place : place + 1], device)[0], together[place])
    directions = torch.nn.functional.normalize(together.double().flatten(1), dim=1)
    assert (directions @ directions.T - torch.eye(len(SOURCES), device=device)).abs().max() < 5 / directions.shape[
        1
    ] ** 0.5
