"""Where the noise of an image comes from: a generator of PyTorch, as in diffusers, or numbers that are counted.

Both depend on the image's seed alone. A generator has to be asked in order, so the host draws and sends each step's noise.
Counted noise is a function of seed, step, draw and element (`bridle_kernels.counter_noise`): a step computes its own.
"""

from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.solvers import SolverTable
from bridle.uploads import sent
from bridle_kernels.counter_noise import standard_normal

SOURCES = ("torch", "philox")
"""Values of `Request.noise`."""


class StartDraw(IntEnum):
    """What is drawn before the first step: a draw number of counted noise."""

    LATENTS = 0
    IMAGE = 1
    MASKED_IMAGE = 2


class NoiseSource(Protocol):
    """Noise of one image.

    generator: for choices that are no noise, such as the backgrounds of latent regions. seed: of noise that a step makes
    itself, None where the host draws it.
    """

    generator: torch.Generator
    seed: int | None

    def start(self, draw: StartDraw, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 on the CPU, before the first step."""

    def step(self, table: SolverTable, step: int, like: Tensor) -> Tensor | None:
        """What the host draws for a step, times its coefficients, where `like` is; None for nothing."""

    def again(self) -> "NoiseSource":
        """Another one that gives what this one will give."""


class TorchNoise:
    """Draws as diffusers does for one image, in its order."""

    def __init__(self, generator: torch.Generator) -> None:
        self.seed: int | None = None
        self.generator = generator

    def start(self, draw: StartDraw, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.start`; what is drawn is the next of the generator."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float32)

    def step(self, table: SolverTable, step: int, like: Tensor) -> Tensor | None:
        """See `NoiseSource.step`. Also draws those whose coefficient is 0."""
        coefficients = table.noise_coefficients[step]
        total: Tensor | None = None
        for draw in range(int(table.noise_draws[step])):
            noise = torch.randn((1, *like.shape), generator=self.generator, dtype=torch.float32)[0]
            noise = sent(noise, like.device)
            if coefficients[draw] != 0.0:
                term = float(coefficients[draw]) * noise
                total = term if total is None else total + term
        return total

    def again(self) -> "TorchNoise":
        """See `NoiseSource.again`."""
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        return TorchNoise(generator)


class CountedNoise:
    """Philox4x32-10 with the image's seed as its key. Step 0 of the counter is the start, step i + 1 the solver's step i."""

    def __init__(self, seed: int) -> None:
        self.seed: int | None = seed
        self._seed = seed
        self.generator = torch.Generator().manual_seed(seed)

    def start(self, draw: StartDraw, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.start`."""
        return standard_normal(self._seed, 0, draw, shape)

    def step(self, table: SolverTable, step: int, like: Tensor) -> None:
        """Nothing: see `counters`."""

    def again(self) -> "CountedNoise":
        """See `NoiseSource.again`."""
        return CountedNoise(self._seed)


def noise_source(name: str, seed: int) -> NoiseSource:
    """The source of one image. name: of `SOURCES`."""
    return CountedNoise(seed) if name == "philox" else TorchNoise(torch.Generator().manual_seed(seed))


def counters(source: NoiseSource, steps: range) -> NDArray[np.int64]:
    """[S, 2]: seed (its 64 bits) and step of the counter in each of the steps. Zeros for noise that the host draws."""
    found = np.zeros((len(steps), 2), np.int64)
    if source.seed is not None:
        found[:, 0] = np.uint64(source.seed).astype(np.int64)
        found[:, 1] = np.arange(steps.start, steps.stop) + 1
    return found


def scales(source: NoiseSource, table: SolverTable, steps: range, draws: int) -> NDArray[np.float32]:
    """[S, draws]: the coefficient of each draw that a step makes itself."""
    found = np.zeros((len(steps), draws), np.float32)
    if source.seed is not None:
        coefficients = table.noise_coefficients[steps.start : steps.stop]
        found[:, : coefficients.shape[1]] = coefficients
    return found
