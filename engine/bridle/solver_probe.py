"""Reads the coefficients of a diffusers scheduler by feeding it basis vectors.

Every sample, model output and random draw of a run is one coordinate of a long vector. A step that is linear returns,
for a batch of unit vectors, exactly its coefficients; a few further columns run a real trajectory with random inputs,
and the table must reproduce it, else the scheduler is refused.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

Array = NDArray[np.float64]

DRAWS_PER_STEP = 2
"""The most normal tensors a scheduler may draw in one step."""
_CHECKS = 4


@dataclass(slots=True)
class Probe:
    """What a run over basis vectors read.

    rows: [S, 4 S] coefficients of the output of step i over x_0..x_{S-1}, m_0..m_{S-1}, z_00, z_01, z_10, ...
    draws: [S] normal tensors drawn in each step. input_scale: [S].
    samples: [S + 1, n], outputs: [S, n], noises: [S, 2, n]: the random trajectory that the table must reproduce.
    constant: the largest output for all-zero inputs, 0 for a linear step.
    """

    rows: Array
    draws: NDArray[np.int64]
    input_scale: Array
    samples: Array
    outputs: Array
    noises: Array
    constant: float


def run_probe(scheduler: Any, timesteps: Tensor, eta: float) -> Probe:
    """Steps `scheduler` (with its timesteps and begin index set) through `timesteps` [S] and reads its coefficients."""
    steps = len(timesteps)
    vectors = _Vectors(steps, float(scheduler.init_noise_sigma))
    probe = vectors.empty_probe()
    source = _BasisNoise(vectors)
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler = _BrownianPath(source.draw)
    extra = _step_arguments(scheduler, eta)
    with source:
        for i in range(steps):
            source.begin_step(i)
            sample, output = vectors.sample(i), vectors.output(i)
            scaled = scheduler.scale_model_input(sample, timesteps[i])
            following = scheduler.step(output, timesteps[i], sample, return_dict=False, **extra)[0]
            probe.input_scale[i] = scaled[0, i, 0, 0].item()
            probe.draws[i] = source.drawn
            vectors.record(probe, i, following)
    return probe


def _step_arguments(scheduler: Any, eta: float) -> dict[str, Any]:
    accepted = inspect.signature(scheduler.step).parameters
    return {"eta": eta} if "eta" in accepted else {}


class _Vectors:
    """Tensors [1, 4 S + 1 + n, 1, 1]: the basis columns, one all-zero column, n columns of a random trajectory."""

    def __init__(self, steps: int, init_sigma: float) -> None:
        self.steps = steps
        self.basis = (2 + DRAWS_PER_STEP) * steps
        self.shape = (1, self.basis + 1 + _CHECKS, 1, 1)
        random = np.random.default_rng(steps)
        self._outputs = random.standard_normal((steps, _CHECKS))
        self._noises = random.standard_normal((steps, DRAWS_PER_STEP, _CHECKS))
        self._trajectory = random.standard_normal(_CHECKS) * max(1.0, init_sigma)

    def empty_probe(self) -> Probe:
        steps = self.steps
        samples = np.zeros((steps + 1, _CHECKS))
        samples[0] = self._trajectory
        return Probe(
            rows=np.zeros((steps, self.basis)),
            draws=np.zeros(steps, dtype=np.int64),
            input_scale=np.ones(steps),
            samples=samples,
            outputs=self._outputs,
            noises=self._noises,
            constant=0.0,
        )

    def sample(self, step: int) -> Tensor:
        return self._unit(step, self._trajectory)

    def output(self, step: int) -> Tensor:
        return self._unit(self.steps + step, self._outputs[step])

    def noise(self, step: int, draw: int) -> Tensor:
        return self._unit(2 * self.steps + DRAWS_PER_STEP * step + draw, self._noises[step, draw])

    def record(self, probe: Probe, step: int, following: Tensor) -> None:
        values = following.double().numpy().reshape(-1)
        probe.rows[step] = values[: self.basis]
        probe.constant = max(probe.constant, abs(float(values[self.basis])))
        self._trajectory = values[self.basis + 1 :].copy()
        probe.samples[step + 1] = self._trajectory

    def _unit(self, column: int, trajectory: Array) -> Tensor:
        values = np.zeros(self.shape)
        values[0, column] = 1.0
        values[0, self.basis + 1 :, 0, 0] = trajectory
        return torch.from_numpy(values)


class _BasisNoise(TorchFunctionMode):
    """Replaces normal draws by basis vectors, on this thread only, and keeps the vectors in float64.

    Several schedulers compute in float32 whatever they are given; the coefficients need not lose those digits.
    """

    def __init__(self, vectors: _Vectors) -> None:
        super().__init__()
        self._vectors = vectors
        self._step = 0
        self.drawn = 0

    def begin_step(self, step: int) -> None:
        self._step, self.drawn = step, 0

    def draw(self) -> Tensor:
        """The next draw of this step as a basis vector."""
        if self.drawn == DRAWS_PER_STEP:
            raise ValueError(f"more than {DRAWS_PER_STEP} random draws in one step")
        self.drawn += 1
        return self._vectors.noise(self._step, self.drawn - 1)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn, torch.randn_like):
            return self._drawn_for(tuple(args[0].shape if func is torch.randn_like else args[0]))
        if func is torch.Tensor.to and args[0].shape == self._vectors.shape and torch.float32 in args:
            return args[0]
        return func(*args, **kwargs)

    def _drawn_for(self, shape: tuple[int, ...]) -> Tensor:
        if shape != self._vectors.shape:
            raise ValueError(f"random draw of shape {shape}, not of the sample's shape")
        return self.draw()


@dataclass(slots=True)
class _BrownianPath:
    """Stands for torchsde's Brownian tree: normalised increments of one path over nested or adjacent intervals.

    Each interval between neighbouring known points holds one draw, so that increments overlap as those of a path do.
    """

    draw: Callable[[], Tensor]
    known: list[tuple[float, float, Tensor]] = field(default_factory=list)

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        low, high = sorted((float(sigma), float(sigma_next)))
        inside = [piece for piece in self.known if low <= piece[0] and piece[1] <= high]
        edges = sorted({low, high} | {piece[0] for piece in inside} | {piece[1] for piece in inside})
        for start, end in pairwise(edges):
            if not any(piece[0] == start and piece[1] == end for piece in inside):
                inside.append((start, end, self.draw() * (end - start) ** 0.5))
        self.known = inside
        total = inside[0][2]
        for piece in inside[1:]:
            total = total + piece[2]
        scaled: Tensor = total / (high - low) ** 0.5
        return scaled
