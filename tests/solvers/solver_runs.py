"""A run of a diffusers scheduler and the same run by a table: same inputs, same generator."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bridle.schedulers import scheduler_class
from bridle.solvers import SolverTable

SHAPE = (1, 4, 5, 3)

SD_BASE: Mapping[str, object] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}


def build(class_name: str, config: Mapping[str, object]) -> Any:
    """The scheduler as a diffusers user builds it."""
    return scheduler_class(class_name).from_config(dict(config))


class SameDraws(TorchFunctionMode):
    """Normal tensors are drawn in float32 whatever dtype is asked, so that runs in two dtypes see the same noise."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.randn:
            return func(*args, **kwargs)
        dtype = kwargs.pop("dtype", None)
        return func(*args, **kwargs, dtype=torch.float32).to(dtype or torch.float32)


def brownian_sampler(generator: torch.Generator, dtype: torch.dtype) -> Callable[[Any, Any], Tensor]:
    """Normalised increments of a Brownian path: over one part of an interval, then over the whole of it."""
    parts: list[tuple[float, float, Tensor]] = []

    def sample(sigma: Any, sigma_next: Any) -> Tensor:
        high, low = float(sigma), float(sigma_next)
        draw = torch.randn(SHAPE, generator=generator, dtype=dtype)
        if parts and parts[-1][1] == high:
            middle, _, first = parts.pop()
            total = first + draw * (middle - low) ** 0.5
        else:
            total = draw * (high - low) ** 0.5
            parts.append((low, high, total))
        scaled: Tensor = total / (high - low) ** 0.5
        return scaled

    return sample


def start_index(scheduler: Any, steps: int, strength: float) -> int:
    """First timestep of an image-to-image run, as diffusers' `get_timesteps` cuts it."""
    return (steps - min(int(steps * strength), steps)) * int(scheduler.order)


@dataclass(frozen=True)
class Run:
    """samples: x_0 .. x_S. scales: the input scale of each step. state: the generator's state afterwards."""

    samples: list[Tensor]
    scales: list[float]
    state: Tensor


def own_run(scheduler: Any, start: int, first: Tensor, outputs: Tensor, seed: int, eta: float = 0.0) -> Run:
    """The scheduler's own run from `start`, in the inputs' dtype."""
    generator = torch.Generator().manual_seed(seed)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    extra: dict[str, Any] = {"generator": generator, "eta": eta}
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler = brownian_sampler(generator, first.dtype)
    accepted = inspect.signature(scheduler.step).parameters
    extra = {name: value for name, value in extra.items() if name in accepted}
    samples, scales = [first], []
    with SameDraws():
        for i, timestep in enumerate(scheduler.timesteps[start:]):
            scaled = scheduler.scale_model_input(samples[-1], timestep)
            scales.append(float((scaled * samples[-1]).sum() / (samples[-1] ** 2).sum()))
            samples.append(scheduler.step(outputs[i], timestep, samples[-1], return_dict=False, **extra)[0])
    return Run(samples, scales, generator.get_state())


def table_run(table: SolverTable, first: Tensor, outputs: Tensor, seed: int) -> Run:
    """The recurrence in the inputs' dtype, drawing from the request's own generator."""
    generator = torch.Generator().manual_seed(seed)
    samples = [first]
    for i in range(len(table)):
        following = torch.zeros_like(first)
        for k, value in enumerate(table.sample_coefficients[i][: i + 1]):
            following = following + float(value) * samples[i - k]
        for k, value in enumerate(table.output_coefficients[i][: i + 1]):
            following = following + float(value) * outputs[i - k]
        for j in range(int(table.noise_draws[i])):
            following = following + float(table.noise_coefficients[i, j]) * torch.randn(SHAPE, generator=generator)
        samples.append(following)
    return Run(samples, table.input_scale.tolist(), generator.get_state())


def deviation(own: Run, other: Run) -> float:
    """Largest difference over all samples, relative to the run's largest value (or 1, if that is smaller)."""
    scale = max(1.0, max(float(sample.abs().max()) for sample in own.samples))
    return max(float((a - b).abs().max()) for a, b in zip(own.samples, other.samples, strict=True)) / scale


def inputs(length: int, init_sigma: float, seed: int) -> tuple[Tensor, Tensor]:
    """(x_0, m [S, ...]) standard normal, x_0 times the initial sigma."""
    random = np.random.default_rng(seed)
    first = torch.from_numpy(random.standard_normal(SHAPE)).float() * init_sigma
    return first, torch.from_numpy(random.standard_normal((length, *SHAPE))).float()
