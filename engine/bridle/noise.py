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
from bridle_kernels import counter_noise

SOURCES = ("torch", "philox")
"""Values of `Request.noise`."""


class StartDraw(IntEnum):
    """What is drawn before the first step: a draw number of counted noise. Background i has the number BACKGROUND + i."""

    LATENTS = 0
    IMAGE = 1
    MASKED_IMAGE = 2
    COLOURS = 3
    BACKGROUND = 4


CHOICE = 2**31
"""Draw number of a step's choices at place 0, that of place i is i more: solvers have few draws, from 0 on."""


class NoiseSource(Protocol):
    """Noise of one image, and what else is left to chance.

    seed: of noise that a step makes itself, None where the host draws it.
    """

    seed: int | None

    def start(self, draw: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 on the CPU, before the first step. draw: see `StartDraw`."""

    def uniform(self, draw: int, shape: tuple[int, ...]) -> Tensor:
        """Float32 in [0, 1) on the CPU, before the first step."""

    def choices(self, shape: tuple[int, int, int], options: int) -> Tensor:
        """int64 from 0 to options - 1 for the solver's steps, places and things there; asked before the first step."""

    def step(self, table: SolverTable, step: int, like: Tensor) -> Tensor | None:
        """What the host draws for a step, times its coefficients, where `like` is; None for nothing."""

    def again(self) -> "NoiseSource":
        """Another one that gives what this one will give."""


class TorchNoise:
    """Draws as diffusers does for one image, in its order."""

    def __init__(self, generator: torch.Generator) -> None:
        self.seed: int | None = None
        self._generator = generator

    def start(self, draw: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.start`; what is drawn is the next of the generator."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32)

    def uniform(self, draw: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.uniform`; the next of the generator."""
        return torch.rand(shape, generator=self._generator, dtype=torch.float32)

    def choices(self, shape: tuple[int, int, int], options: int) -> Tensor:
        """See `NoiseSource.choices`; the next of the generator, asked once for each step and place."""
        steps, places, count = shape
        drawn = [torch.randint(0, options, (count,), generator=self._generator) for _ in range(steps * places)]
        return torch.stack(drawn).reshape(shape)

    def step(self, table: SolverTable, step: int, like: Tensor) -> Tensor | None:
        """See `NoiseSource.step`. Also draws those whose coefficient is 0."""
        coefficients = table.noise_coefficients[step]
        total: Tensor | None = None
        for draw in range(int(table.noise_draws[step])):
            noise = torch.randn((1, *like.shape), generator=self._generator, dtype=torch.float32)[0]
            noise = sent(noise, like.device)
            if coefficients[draw] != 0.0:
                term = float(coefficients[draw]) * noise
                total = term if total is None else total + term
        return total

    def again(self) -> "TorchNoise":
        """See `NoiseSource.again`."""
        generator = torch.Generator()
        generator.set_state(self._generator.get_state())
        return TorchNoise(generator)


class CountedNoise:
    """Philox4x32-10 with the image's seed as its key. Step 0 of the counter is the start, step i + 1 the solver's step i."""

    def __init__(self, seed: int) -> None:
        self.seed: int | None = seed
        self._seed = seed

    def start(self, draw: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.start`."""
        return counter_noise.standard_normal(self._seed, 0, draw, shape)

    def uniform(self, draw: int, shape: tuple[int, ...]) -> Tensor:
        """See `NoiseSource.uniform`."""
        return counter_noise.uniform(self._seed, 0, draw, shape)

    def choices(self, shape: tuple[int, int, int], options: int) -> Tensor:
        """See `NoiseSource.choices`. The first of many are what fewer would be."""
        steps, places, elements = (torch.arange(count) for count in shape)
        draws = CHOICE + places[:, None]
        return counter_noise.choices(self._seed, steps[:, None, None] + 1, draws, elements, options)

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
