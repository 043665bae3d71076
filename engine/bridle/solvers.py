"""Coefficient tables of diffusion solvers.

A scheduler of diffusers is stateful, but its step is linear in the samples, the model outputs and the noise.
`solver_table` steps a scheduler once over basis vectors (`solver_probe`), reduces what it read to a short recurrence
(`solver_recurrence`), checks it on a random trajectory, and keeps an immutable table that any number of requests and
threads can share.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bridle.errors import RequestError
from bridle.schedulers import Scheduler, refusal, resolve_scheduler, scheduler_class
from bridle.solver_probe import Array, Probe, run_probe
from bridle.solver_recurrence import recurrence

_AnyArray = TypeVar("_AnyArray", bound=np.ndarray[Any, Any])

MAX_STEPS = 1000
"""The most inference steps, and the most custom timesteps or sigmas."""
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class SolverTable:
    """One schedule of one solver. Arrays are float64 and read-only; S evaluations of the model.

    A second-order scheduler (Heun, DPM2, DPM++ SDE) has one row per evaluation, so S may exceed the asked step count.
    With x_i the sample (before `input_scale`), m_i the guided model output and z_ij standard normal noise:

        x_{i+1} = sum_k sample_coefficients[i, k] x_{i-k} + sum_k output_coefficients[i, k] m_{i-k}
                + sum_j noise_coefficients[i, j] z_ij

    timesteps: [S], what the model is told. input_scale: [S], model input = input_scale * x. init_noise_sigma:
    text-to-image starts from init_noise_sigma * z. sample_coefficients [S, Kx], output_coefficients [S, Km],
    noise_coefficients [S, Kz]. noise_draws: int64 [S], normal tensors that diffusers draws in step i, in order, those
    with coefficient 0 included. add_noise: [S + 1, 2], image-to-image noise level (a, s) before step i: a * clean + s
    * noise; the last row is (1, 0). denoised: [S, 2], predicted clean sample = d0 * x_i + d1 * m_i. residual: largest
    deviation of the table from the scheduler over a random run, relative to its largest value.
    """

    timesteps: Array
    input_scale: Array
    init_noise_sigma: float
    sample_coefficients: Array
    output_coefficients: Array
    noise_coefficients: Array
    noise_draws: NDArray[np.int64]
    add_noise: Array
    denoised: Array
    prediction_type: str
    name: str
    residual: float

    def __len__(self) -> int:
        return len(self.timesteps)


def solver_table(
    scheduler: str | Mapping[str, object] | None,
    num_inference_steps: int = 50,
    *,
    strength: float = 1.0,
    base: Mapping[str, object] | None = None,
    eta: float = 0.0,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> SolverTable:
    """The table of a schedule.

    scheduler, base: as in `schedulers.resolve_scheduler`. num_inference_steps: 1 to 1000. strength: 0 to 1, the share
    of the schedule that is run, cut as diffusers' image-to-image pipelines cut it; 0 gives an empty table. eta: 0 to
    1, for the schedulers that take it (DDIM, TCD; 0 with others), as in diffusers' pipelines. timesteps, sigmas: a schedule of
    one's own, for schedulers that accept one; then `num_inference_steps` is its length. Raises RequestError naming
    the field, also for a configuration whose step is not linear.
    """
    if timesteps is not None and sigmas is not None:
        raise RequestError("sigmas", tuple(sigmas), "None when timesteps are given")
    resolved = resolve_scheduler(scheduler, base)
    steps = _checked_steps(num_inference_steps)
    prediction = resolved.field("prediction_type")
    asked = (base or {}).get("prediction_type", "epsilon")
    if prediction is None and asked != "epsilon":
        raise RequestError("scheduler", resolved.class_name, f"a scheduler for models with {asked}")
    if eta != 0 and "eta" not in inspect.signature(scheduler_class(resolved.class_name).step).parameters:
        raise RequestError("eta", eta, f"0: {resolved.class_name} has none")
    return _table(
        resolved,
        steps,
        _checked_unit("strength", strength),
        _checked_unit("eta", eta),
        None if timesteps is None else _checked_timesteps(timesteps, resolved),
        None if sigmas is None else _checked_sigmas(sigmas),
    )


@lru_cache(maxsize=256)
def _table(
    resolved: Scheduler,
    steps: int,
    strength: float,
    eta: float,
    timesteps: tuple[int, ...] | None,
    sigmas: tuple[float, ...] | None,
) -> SolverTable:
    scheduler = resolved.build()
    try:
        start = _set_schedule(scheduler, steps, strength, timesteps, sigmas)
        run = scheduler.timesteps[start:]
        levels = _noise_levels(scheduler, start)
        _set_begin(scheduler, start)
        probe = run_probe(scheduler, run, eta)
    except RequestError:
        raise
    except Exception as problem:  # third-party code: whatever its configuration provokes
        raise refusal(resolved.class_name, problem) from problem
    return _assemble(resolved, probe, run.double().numpy(), levels, float(scheduler.init_noise_sigma))


def _set_schedule(
    scheduler: Any,
    steps: int,
    strength: float,
    timesteps: tuple[int, ...] | None,
    sigmas: tuple[float, ...] | None,
) -> int:
    """Sets the scheduler's timesteps; returns the index of the first one that `strength` leaves."""
    if timesteps is not None:
        scheduler.set_timesteps(timesteps=list(timesteps))
        steps = len(scheduler.timesteps)
    elif sigmas is not None:
        scheduler.set_timesteps(sigmas=list(sigmas))
        steps = len(scheduler.timesteps)
    else:
        scheduler.set_timesteps(steps)
    run = min(int(steps * strength), steps)
    if run < 1 and strength > 0:
        raise RequestError("strength", strength, f"0, or at least 1 step of {steps}")
    return min((steps - run) * int(scheduler.order), len(scheduler.timesteps)) if run else len(scheduler.timesteps)


def _set_begin(scheduler: Any, index: int) -> None:
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _noise_levels(scheduler: Any, start: int) -> Array:
    """[S + 1, 2]: (a, s) of `add_noise` at every step of the run, then (1, 0)."""
    run = scheduler.timesteps[start:]
    levels = np.zeros((len(run) + 1, 2))
    levels[-1] = 1.0, 0.0
    if not hasattr(scheduler, "add_noise"):
        levels[:-1, 0] = scheduler.alphas[start : start + len(run)]
        levels[:-1, 1] = scheduler.betas[start : start + len(run)]
        return levels
    clean = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    for i, timestep in enumerate(run):
        _set_begin(scheduler, start + i)
        levels[i] = scheduler.add_noise(clean, 1.0 - clean, timestep[None]).reshape(2).numpy()
    return levels


def _assemble(resolved: Scheduler, probe: Probe, timesteps: Array, levels: Array, init_sigma: float) -> SolverTable:
    if not np.isfinite(probe.rows).all() or not np.isfinite(probe.samples).all():
        raise _not_finite(resolved.class_name)
    samples, outputs, noises = recurrence(probe.rows, resolved.class_name)
    residual = _residual(probe, samples, outputs, noises)
    prediction = str(resolved.field("prediction_type") or "epsilon")
    denoised = _denoised(levels[:-1], probe.input_scale, prediction)
    _check_linear(resolved.class_name, residual, probe.constant, (samples, outputs, noises, levels, denoised))
    return SolverTable(
        timesteps=_frozen(timesteps),
        input_scale=_frozen(probe.input_scale),
        init_noise_sigma=init_sigma,
        sample_coefficients=_frozen(samples),
        output_coefficients=_frozen(outputs),
        noise_coefficients=_frozen(noises[:, : int(probe.draws.max(initial=0))]),
        noise_draws=_frozen(probe.draws),
        add_noise=_frozen(levels),
        denoised=_frozen(denoised),
        prediction_type=prediction,
        name=resolved.class_name,
        residual=residual,
    )


def _residual(probe: Probe, samples: Array, outputs: Array, noises: Array) -> float:
    worst = 0.0
    for i in range(len(samples)):
        value = np.einsum("j,jn->n", noises[i], probe.noises[i])
        for k in range(min(i + 1, samples.shape[1])):
            value = value + samples[i, k] * probe.samples[i - k]
        for k in range(min(i + 1, outputs.shape[1])):
            value = value + outputs[i, k] * probe.outputs[i - k]
        scale = max(1.0, float(np.abs(probe.samples[max(0, i - 3) : i + 2]).max()))
        worst = max(worst, float(np.abs(value - probe.samples[i + 1]).max()) / scale)
    return worst


def _denoised(levels: Array, input_scale: Array, prediction: str) -> Array:
    """[S, 2]: coefficients of the predicted clean sample over x and m, from x = a clean + s noise.

    epsilon: (x - s m) / a. v, of the sample normalised to a^2 + s^2 = 1 (arXiv 2202.00512): a x - s m. sample: m.
    """
    a, s = levels[:, 0], levels[:, 1].copy()
    between = (a == 1.0) & (input_scale < 1.0)  # evaluations between two noise levels have their own sigma
    s[between] = np.sqrt(1.0 / input_scale[between] ** 2 - 1.0)
    length = np.hypot(a, s)
    if prediction == "epsilon":
        return np.stack([1.0 / np.maximum(a, 1e-8), -s / np.maximum(a, 1e-8)], axis=1)
    if prediction == "v_prediction":
        return np.stack([a / length**2, -s / length], axis=1)
    return np.stack([np.zeros_like(a), np.ones_like(a)], axis=1)


def _check_linear(name: str, residual: float, constant: float, arrays: tuple[Array, ...]) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise _not_finite(name)
    if not residual <= _TOLERANCE or constant > _TOLERANCE:
        worst = max(residual, constant)
        raise RequestError("scheduler", name, f"a step that is linear in sample, output and noise (off by {worst:.1e})")


def _not_finite(name: str) -> RequestError:
    return RequestError(
        "scheduler",
        name,
        "finite coefficients: zero terminal SNR needs v_prediction, some solvers need final_sigmas_type 'sigma_min', "
        "and steps must be few enough that no two have the same noise level",
    )


def _frozen(array: _AnyArray) -> _AnyArray:
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def _checked_steps(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= MAX_STEPS:
        raise RequestError("num_inference_steps", value, f"an integer from 1 to {MAX_STEPS}")
    return int(value)


def _checked_unit(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0.0 <= value <= 1.0:
        raise RequestError(field, value, "a number from 0 to 1")
    return float(value)


def _checked_timesteps(values: Sequence[int], resolved: Scheduler) -> tuple[int, ...]:
    trained = resolved.field("num_train_timesteps")
    top = trained if isinstance(trained, int) else MAX_STEPS
    items = _checked_list("timesteps", values)
    if not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and 0 <= v < top for v in items):
        raise RequestError("timesteps", values, f"integers from 0 to {top - 1}")
    if any(later >= earlier for earlier, later in pairwise(items)):
        raise RequestError("timesteps", values, "strictly falling values")
    return tuple(int(v) for v in items)


def _checked_sigmas(values: Sequence[float]) -> tuple[float, ...]:
    items = _checked_list("sigmas", values)
    if not all(isinstance(v, (int, float, np.floating)) and math.isfinite(v) and v >= 0 for v in items):
        raise RequestError("sigmas", values, "finite numbers >= 0")
    if any(later > earlier for earlier, later in pairwise(items)):
        raise RequestError("sigmas", values, "falling values")
    return tuple(float(v) for v in items)


def _checked_list(field: str, values: Sequence[Any]) -> list[Any]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or not 1 <= len(values) <= MAX_STEPS:
        raise RequestError(field, values, f"a list of 1 to {MAX_STEPS} values")
    return list(values)
