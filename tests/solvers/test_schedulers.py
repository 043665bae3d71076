"""Names and configurations of schedulers."""

from collections.abc import Mapping

import pytest
from solver_runs import SD_BASE

from bridle.errors import RequestError
from bridle.schedulers import SCHEDULER_CLASSES, a1111_names, resolve_scheduler, scheduler_class, scheduler_names

LABELS: dict[str, tuple[str, dict[str, object]]] = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 2m sde karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ sde karras": ("DPMSolverSDEScheduler", {"use_karras_sigmas": True}),
    "dpm2 a karras": ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
    " Euler  a ": ("EulerAncestralDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "euler beta": ("EulerDiscreteScheduler", {"use_beta_sigmas": True, "timestep_spacing": "linspace"}),
    "heun exponential": ("HeunDiscreteScheduler", {"use_exponential_sigmas": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler sgm uniform": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim trailing": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
}


@pytest.mark.parametrize("label", LABELS)
def test_label(label: str) -> None:
    class_name, fields = LABELS[label]
    scheduler = resolve_scheduler(label, SD_BASE)
    assert scheduler.class_name == class_name
    for name, value in fields.items():
        assert scheduler.field(name) == value
    assert scheduler.field("beta_start") == SD_BASE["beta_start"]


def test_a_label_undoes_the_schedule_of_the_model() -> None:
    base = {**SD_BASE, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    scheduler = resolve_scheduler("dpm++ 2m", base)
    assert scheduler.field("use_karras_sigmas") is False
    assert scheduler.field("algorithm_type") == "dpmsolver++"


@pytest.mark.parametrize("label", scheduler_names())
def test_labels_survive_the_image_metadata(label: str) -> None:
    scheduler = resolve_scheduler(label, SD_BASE)
    sampler, schedule = a1111_names(scheduler)
    assert schedule == "Automatic"
    assert resolve_scheduler(sampler, SD_BASE) == scheduler


def test_schedule_type_in_metadata() -> None:
    assert a1111_names(resolve_scheduler("dpm++ 2m karras", SD_BASE)) == ("DPM++ 2M", "Karras")
    assert a1111_names(resolve_scheduler("euler simple", SD_BASE)) == ("Euler", "SGM Uniform")


@pytest.mark.parametrize("name", SCHEDULER_CLASSES)
def test_class_names_merge_the_model_configuration_as_diffusers_does(name: str) -> None:
    theirs = scheduler_class(name).from_config(dict(SD_BASE)).config
    ours = resolve_scheduler(name, SD_BASE).build().config
    for field in set(ours) - {"_use_default_values"}:
        assert ours[field] == theirs[field], field


def test_a_saved_configuration_is_accepted_whole() -> None:
    saved = dict(scheduler_class("UniPCMultistepScheduler")(beta_end=0.013, use_karras_sigmas=True).config)
    saved |= {"_class_name": "UniPCMultistepScheduler", "_diffusers_version": "0.42.1"}
    scheduler = resolve_scheduler(saved, SD_BASE)
    assert scheduler.field("beta_end") == 0.013
    assert scheduler.field("use_karras_sigmas") is True


def test_none_is_the_scheduler_of_the_model() -> None:
    assert resolve_scheduler(None, {**SD_BASE, "_class_name": "PNDMScheduler"}).class_name == "PNDMScheduler"
    with pytest.raises(RequestError):
        resolve_scheduler(None, SD_BASE)


def test_equal_schedulers_are_equal_keys() -> None:
    one = resolve_scheduler({"_class_name": "LCMScheduler", "trained_betas": [0.1, 0.2]}, None)
    other = resolve_scheduler({"trained_betas": (0.1, 0.2), "_class_name": "LCMScheduler", "clip_sample": False}, None)
    assert hash(resolve_scheduler("euler", SD_BASE)) == hash(resolve_scheduler("Euler", dict(SD_BASE)))
    assert one != other


BAD = [
    ("nope", "scheduler"),
    ("", "scheduler"),
    ("../x", "scheduler"),
    ("x" * 10**6, "scheduler"),
    ("euler\x00\ud800", "scheduler"),
    ("euler a karras", "scheduler"),
    (7, "scheduler"),
    ({}, "scheduler._class_name"),
    ({"_class_name": "os.system"}, "scheduler._class_name"),
    ({"_class_name": ["diffusers", "DDIMScheduler"]}, "scheduler._class_name"),
    ({"_class_name": "DDIMScheduler", "foo": 1}, "scheduler.foo"),
    ({"_class_name": "DDIMScheduler", "clip_sample": True}, "scheduler.clip_sample"),
    ({"_class_name": "DDIMScheduler", "thresholding": True}, "scheduler.thresholding"),
    ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "scheduler.use_flow_sigmas"),
    ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "scheduler.variance_type"),
    ({"_class_name": "EulerDiscreteScheduler", "prediction_type": "flow_prediction"}, "scheduler.prediction_type"),
    ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": 1}, "scheduler.use_karras_sigmas"),
    ({"_class_name": "EulerDiscreteScheduler", "beta_start": "0.1"}, "scheduler.beta_start"),
    ({"_class_name": "EulerDiscreteScheduler", "beta_start": float("nan")}, "scheduler.beta_start"),
    ({"_class_name": "EulerDiscreteScheduler", "beta_start": 0.5}, "scheduler.beta_start"),
    ({"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 0}, "scheduler.num_train_timesteps"),
    ({"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 2**31}, "scheduler.num_train_timesteps"),
    ({"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 10.0}, "scheduler.num_train_timesteps"),
    ({"_class_name": "EulerDiscreteScheduler", "trained_betas": []}, "scheduler.trained_betas"),
    ({"_class_name": "EulerDiscreteScheduler", "trained_betas": ["a"]}, "scheduler.trained_betas"),
]


@pytest.mark.parametrize(("scheduler", "field"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_schedulers(scheduler: str | Mapping[str, object], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve_scheduler(scheduler, SD_BASE)
    assert caught.value.field == field
    assert len(str(caught.value)) <= 512
    assert str(caught.value).isprintable()


def test_what_diffusers_refuses_is_one_typed_error() -> None:
    scheduler = resolve_scheduler({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "nope"}, SD_BASE)
    with pytest.raises(RequestError, match="nope is not implemented"):
        scheduler.build()


def test_a_model_with_another_prediction_needs_a_scheduler_that_knows_it() -> None:
    from bridle.solvers import solver_table

    with pytest.raises(RequestError, match="v_prediction"):
        solver_table("ipndm", 4, base={**SD_BASE, "prediction_type": "v_prediction"})
