"""A table's trajectory equals the scheduler's own, for every scheduler, with the same noise."""

import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from solver_runs import SD_BASE, Run, build, deviation, inputs, own_run, start_index, table_run

from bridle.errors import RequestError
from bridle.schedulers import SCHEDULER_CLASSES
from bridle.solvers import SolverTable, solver_table

TOLERANCE = 1e-5
"""Largest float32 difference, relative to the run's largest value (samples of sigma-space schedulers start at 14.6)."""

_V_ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
_SIGMAS: list[Mapping[str, object]] = [
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True, "timestep_spacing": "linspace"},
    {"use_beta_sigmas": True, "timestep_spacing": "linspace"},
]
_SPACINGS: list[Mapping[str, object]] = [{"timestep_spacing": s} for s in ("linspace", "leading", "trailing")]
_V: list[Mapping[str, object]] = [{"prediction_type": "v_prediction"}]
_SAMPLE: list[Mapping[str, object]] = [{"prediction_type": "sample"}]
_ALL = _SIGMAS + _SPACINGS + _V

VARIANTS: dict[str, list[Mapping[str, object]]] = {
    "DDIMScheduler": [*_SPACINGS, *_V, *_SAMPLE, _V_ZERO_SNR, {"set_alpha_to_one": True}],
    "DDPMScheduler": [*_SPACINGS, *_V, *_SAMPLE, _V_ZERO_SNR, {"variance_type": "fixed_large"}],
    "DEISMultistepScheduler": [*_ALL, *_SAMPLE, {"solver_order": 3}, {"lower_order_final": False}],
    "DPMSolverMultistepScheduler": [
        *_ALL,
        *_SAMPLE,
        _V_ZERO_SNR,
        {"final_sigmas_type": "sigma_min"},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "use_karras_sigmas": True},
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "heun"},
        {"euler_at_final": True},
        {"use_lu_lambdas": True},
    ],
    "DPMSolverSDEScheduler": _ALL,
    "DPMSolverSinglestepScheduler": [
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        *_V,
        *_SAMPLE,
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "heun"},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++"},
    ],
    "EulerAncestralDiscreteScheduler": [*_SPACINGS, *_V, _V_ZERO_SNR],
    "EulerDiscreteScheduler": [*_ALL, *_SAMPLE, _V_ZERO_SNR, {"final_sigmas_type": "sigma_min"}],
    "HeunDiscreteScheduler": [*_ALL, *_SAMPLE],
    "IPNDMScheduler": [],
    "KDPM2AncestralDiscreteScheduler": [*_SPACINGS, *_V],
    "KDPM2DiscreteScheduler": [*_SIGMAS, *_V],
    "LCMScheduler": [*_SPACINGS, *_V, *_SAMPLE],
    "LMSDiscreteScheduler": [*_ALL, *_SAMPLE],
    "PNDMScheduler": [*_SPACINGS, *_V],
    "TCDScheduler": [*_SPACINGS, *_V, *_SAMPLE],
    "UniPCMultistepScheduler": [
        *_ALL,
        *_SAMPLE,
        _V_ZERO_SNR,
        {"solver_order": 1},
        {"solver_order": 3},
        {"predict_x0": False, "final_sigmas_type": "sigma_min"},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"disable_corrector": [0, 3]},
    ],
}
VARIANT_CASES = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


def compare(name: str, variant: Mapping[str, object], steps: int, strength: float, eta: float = 0.0) -> SolverTable:
    """Asserts that both runs agree in samples, input scales, time steps and draws; returns the table."""
    scheduler = build(name, {**SD_BASE, **variant})
    scheduler.set_timesteps(steps)
    start = start_index(scheduler, steps, strength)
    timesteps = scheduler.timesteps[start:]
    first, outputs = inputs(len(timesteps), float(scheduler.init_noise_sigma), steps)
    own = own_run(scheduler, start, first, outputs, steps, eta)
    table = solver_table({"_class_name": name, **variant}, steps, strength=strength, base=SD_BASE, eta=eta)
    ours = table_run(table, first, outputs, steps)
    np.testing.assert_array_equal(table.timesteps, timesteps.double().numpy())
    np.testing.assert_allclose(table.input_scale, own.scales, rtol=1e-5)
    assert torch.equal(ours.state, own.state), "the table draws other noise than the scheduler"
    off = deviation(own, ours)
    assert off <= TOLERANCE or off <= TOLERANCE + own_rounding(name, variant, steps, start, own, outputs, eta)
    return table


def own_rounding(
    name: str, variant: Mapping[str, object], steps: int, start: int, own: Run, outputs: torch.Tensor, eta: float
) -> float:
    """How far the scheduler's float32 run is from its own float64 run: nobody can agree with it more closely."""
    scheduler = build(name, {**SD_BASE, **variant})
    scheduler.set_timesteps(steps)
    exact = own_run(scheduler, start, own.samples[0].double(), outputs.double(), steps, eta)
    return deviation(own, exact)


def test_every_scheduler_has_cases() -> None:
    assert set(VARIANTS) == set(SCHEDULER_CLASSES)


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_full_run(name: str, steps: int) -> None:
    table = compare(name, {}, steps, 1.0)
    assert table.residual <= 1e-12


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
@pytest.mark.parametrize(("steps", "strength"), [(5, 0.6), (20, 0.6), (20, 0.3), (7, 0.3)])
def test_partial_run(name: str, steps: int, strength: float) -> None:
    compare(name, {}, steps, strength)


@pytest.mark.parametrize(
    ("name", "variant"), VARIANT_CASES, ids=[f"{n}-{'-'.join(map(str, v))}" for n, v in VARIANT_CASES]
)
def test_variant(name: str, variant: Mapping[str, object]) -> None:
    compare(name, variant, 11, 1.0)


@pytest.mark.parametrize("name", ["DDIMScheduler", "TCDScheduler"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta(name: str, eta: float) -> None:
    table = compare(name, {}, 8, 1.0, eta)
    assert table.noise_draws.sum() >= 7


def test_runge_kutta_warm_up() -> None:
    compare("PNDMScheduler", {"skip_prk_steps": False}, 12, 1.0)


@pytest.mark.parametrize("field", ["sample_coefficients", "output_coefficients", "noise_coefficients"])
def test_a_changed_coefficient_is_noticed(field: str) -> None:
    """Negative control: the comparison above must fail for a wrong table."""
    scheduler = build("EulerAncestralDiscreteScheduler", SD_BASE)
    scheduler.set_timesteps(6)
    first, outputs = inputs(6, float(scheduler.init_noise_sigma), 3)
    own = own_run(scheduler, 0, first, outputs, 3)
    table = solver_table("euler a", 6, base=SD_BASE)
    changed = getattr(table, field).copy()
    changed[3, 0] += 1e-3
    assert deviation(own, table_run(table, first, outputs, 3)) <= TOLERANCE
    assert deviation(own, table_run(replace(table, **{field: changed}), first, outputs, 3)) > TOLERANCE


@pytest.mark.parametrize("name", sorted(set(SCHEDULER_CLASSES) - {"IPNDMScheduler"}))
def test_noise_levels(name: str) -> None:
    """The start of image-to-image, and the level to which inpainting noises the known region before each step."""
    table = solver_table(name, 6, base=SD_BASE, strength=0.5)
    scheduler = build(name, SD_BASE)
    scheduler.set_timesteps(6)
    start = start_index(scheduler, 6, 0.5)
    clean, noise = inputs(1, 1.0, 4)
    for i, timestep in enumerate(scheduler.timesteps[start:]):
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start + i)
        expected = scheduler.add_noise(clean, noise[0], timestep[None])
        a, s = table.add_noise[i].tolist()
        torch.testing.assert_close(a * clean + s * noise[0], expected, rtol=1e-5, atol=1e-5)
    assert table.add_noise[-1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_denoised_recovers_the_clean_sample(name: str, prediction: str) -> None:
    """With the exact model output for x = a clean + s noise, the preview is the clean sample."""
    table = solver_table(name, 9, base={**SD_BASE, "prediction_type": prediction})
    clean, noise = (t.double().numpy() for t in inputs(1, 1.0, 8))
    for i in range(len(table)):
        a, s = table.add_noise[i] / np.hypot(*table.add_noise[i])
        x = table.add_noise[i, 0] * clean + table.add_noise[i, 1] * noise[0]
        output = {"epsilon": noise[0], "v_prediction": a * noise[0] - s * clean, "sample": clean}[prediction]
        d0, d1 = table.denoised[i]
        np.testing.assert_allclose(d0 * x + d1 * output, clean, atol=1e-5)


def test_denoised_between_noise_levels() -> None:
    """The second evaluation of DPM2 happens at a sigma of its own, which its input scale tells."""
    table = solver_table("dpm2", 4, base=SD_BASE)
    np.testing.assert_allclose(-table.denoised[:, 1], np.sqrt(1 / table.input_scale**2 - 1), rtol=1e-6)
    assert np.all(np.diff(-table.denoised[:, 1]) < 0)


def test_strength_zero_is_an_empty_table() -> None:
    table = solver_table("euler", 20, strength=0.0, base=SD_BASE)
    assert len(table) == 0
    assert table.add_noise.tolist() == [[1.0, 0.0]]
    assert table.sample_coefficients.shape[0] == table.noise_coefficients.shape[0] == 0


def test_custom_timesteps_and_sigmas() -> None:
    steps = [900, 700, 300, 30]
    table = solver_table("dpm++ 2m", base=SD_BASE, timesteps=steps)
    assert table.timesteps.tolist() == steps
    scheduler = build("EulerDiscreteScheduler", SD_BASE)
    scheduler.set_timesteps(sigmas=[10.0, 4.0, 0.7])
    table = solver_table("euler", base=SD_BASE, sigmas=[10.0, 4.0, 0.7])
    first, outputs = inputs(3, float(scheduler.init_noise_sigma), 3)
    own = own_run(scheduler, 0, first, outputs, 3)
    assert deviation(own, table_run(table, first, outputs, 3)) <= TOLERANCE


def test_tables_are_shared_and_read_only() -> None:
    table = solver_table("dpm++ 2m karras", 12, base=SD_BASE)
    assert solver_table("DPM++ 2M Karras", 12, base=dict(SD_BASE)) is table
    for field in ("timesteps", "input_scale", "sample_coefficients", "noise_draws", "add_noise", "denoised"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(table, field)[...] = 0


def test_probing_from_threads_and_leaving_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    alone = [solver_table("euler a", n, base=SD_BASE) for n in range(3, 11)]
    found: dict[int, SolverTable] = {}
    base = {**SD_BASE, "beta_end": 0.0120}

    def probe(n: int) -> None:
        found[n] = solver_table("euler a", n, base={**base, "steps_offset": 0})

    threads = [threading.Thread(target=probe, args=(n,)) for n in range(3, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(state, torch.get_rng_state())
    for n, table in zip(range(3, 11), alone, strict=True):
        assert found[n].sample_coefficients.shape == table.sample_coefficients.shape
        again = own_and_table(n, found[n])
        assert again <= TOLERANCE


def own_and_table(steps: int, table: SolverTable) -> float:
    """Deviation of `table` from an Euler ancestral run of its own, steps_offset 0."""
    scheduler = build("EulerAncestralDiscreteScheduler", {**SD_BASE, "steps_offset": 0})
    scheduler.set_timesteps(steps)
    first, outputs = inputs(steps, float(scheduler.init_noise_sigma), steps)
    return deviation(own_run(scheduler, 0, first, outputs, 1), table_run(table, first, outputs, 1))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": -1}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"num_inference_steps": 10**9}, "num_inference_steps"),
        ({"num_inference_steps": 1.5}, "num_inference_steps"),
        ({"num_inference_steps": float("nan")}, "num_inference_steps"),
        ({"num_inference_steps": "20"}, "num_inference_steps"),
        ({"num_inference_steps": True}, "num_inference_steps"),
        ({"strength": 1.0000001}, "strength"),
        ({"strength": -0.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": 0.04}, "strength"),
        ({"eta": float("nan")}, "eta"),
        ({"timesteps": []}, "timesteps"),
        ({"timesteps": [10, 500]}, "timesteps"),
        ({"timesteps": [500, 500]}, "timesteps"),
        ({"timesteps": [1000, 5]}, "timesteps"),
        ({"timesteps": [500.5, 5.0]}, "timesteps"),
        ({"timesteps": range(10**6, 0, -1)}, "timesteps"),
        ({"timesteps": "500"}, "timesteps"),
        ({"sigmas": [1.0, float("nan")]}, "sigmas"),
        ({"sigmas": [-1.0]}, "sigmas"),
        ({"sigmas": [1.0, 2.0]}, "sigmas"),
        ({"sigmas": [1.0], "timesteps": [5]}, "sigmas"),
    ],
)
def test_bad_arguments(arguments: Mapping[str, object], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        solver_table("euler", base=SD_BASE, **{"num_inference_steps": 20, **arguments})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_step_that_is_not_linear_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if no field of the configuration tells: what was read must reproduce a random run."""
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    original = EulerDiscreteScheduler.step

    def clipped(self: object, model_output: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor]:
        return (original(self, model_output, *args, **kwargs)[0].clamp(-1.5, 1.5),)

    monkeypatch.setattr(EulerDiscreteScheduler, "step", clipped)
    with pytest.raises(RequestError, match="linear in sample"):
        solver_table("euler", 13, base={**SD_BASE, "beta_end": 0.0121})


def test_steps_beyond_what_the_scheduler_can_do_are_refused() -> None:
    with pytest.raises(RequestError, match="finite coefficients"):
        solver_table("unipc", 1000, base=SD_BASE)
    with pytest.raises(RequestError, match="finite coefficients"):
        solver_table("ddim", 4, base={**SD_BASE, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
