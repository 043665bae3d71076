"""Names of schedulers: A1111 labels, diffusers class names and configuration dictionaries -> a diffusers scheduler.

Nothing is imported by a name that comes from outside: class names go through `SCHEDULER_CLASSES`.
"""

import importlib
import importlib.util
import inspect
import math
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType, ModuleType
from typing import Any

from bridle.errors import RequestError

SCHEDULER_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "DDIMScheduler": "scheduling_ddim",
        "DDPMScheduler": "scheduling_ddpm",
        "DEISMultistepScheduler": "scheduling_deis_multistep",
        "DPMSolverMultistepScheduler": "scheduling_dpmsolver_multistep",
        "DPMSolverSDEScheduler": "scheduling_dpmsolver_sde",
        "DPMSolverSinglestepScheduler": "scheduling_dpmsolver_singlestep",
        "EulerAncestralDiscreteScheduler": "scheduling_euler_ancestral_discrete",
        "EulerDiscreteScheduler": "scheduling_euler_discrete",
        "HeunDiscreteScheduler": "scheduling_heun_discrete",
        "IPNDMScheduler": "scheduling_ipndm",
        "KDPM2AncestralDiscreteScheduler": "scheduling_k_dpm_2_ancestral_discrete",
        "KDPM2DiscreteScheduler": "scheduling_k_dpm_2_discrete",
        "LCMScheduler": "scheduling_lcm",
        "LMSDiscreteScheduler": "scheduling_lms_discrete",
        "PNDMScheduler": "scheduling_pndm",
        "TCDScheduler": "scheduling_tcd",
        "UniPCMultistepScheduler": "scheduling_unipc_multistep",
    }
)
"""Every scheduler class that a model folder or a request may name -> its module in `diffusers.schedulers`."""

_DPM_2M: dict[str, object] = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_SAMPLERS: dict[str, tuple[str, str, dict[str, object]]] = {
    "ddim": ("DDIM", "DDIMScheduler", {}),
    "ddpm": ("DDPM", "DDPMScheduler", {}),
    "deis": ("DEIS", "DEISMultistepScheduler", {}),
    "dpm++ 2m": ("DPM++ 2M", "DPMSolverMultistepScheduler", _DPM_2M),
    "dpm++ 2m sde": ("DPM++ 2M SDE", "DPMSolverMultistepScheduler", _DPM_2M | {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 2m sde heun": (
        "DPM++ 2M SDE Heun",
        "DPMSolverMultistepScheduler",
        _DPM_2M | {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    "dpm++ 2s": ("DPM++ 2S", "DPMSolverSinglestepScheduler", _DPM_2M),
    "dpm++ 3m": ("DPM++ 3M", "DPMSolverMultistepScheduler", _DPM_2M | {"solver_order": 3}),
    "dpm++ 3m sde": (
        "DPM++ 3M SDE",
        "DPMSolverMultistepScheduler",
        _DPM_2M | {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    ),
    "dpm++ sde": ("DPM++ SDE", "DPMSolverSDEScheduler", {}),
    "dpm2": ("DPM2", "KDPM2DiscreteScheduler", {}),
    "dpm2 a": ("DPM2 a", "KDPM2AncestralDiscreteScheduler", {}),
    "euler": ("Euler", "EulerDiscreteScheduler", {}),
    "euler a": ("Euler a", "EulerAncestralDiscreteScheduler", {}),
    "heun": ("Heun", "HeunDiscreteScheduler", {}),
    "ipndm": ("iPNDM", "IPNDMScheduler", {}),
    "lcm": ("LCM", "LCMScheduler", {}),
    "lms": ("LMS", "LMSDiscreteScheduler", {}),
    "plms": ("PLMS", "PNDMScheduler", {"skip_prk_steps": True}),
    "pndm": ("PNDM", "PNDMScheduler", {"skip_prk_steps": False}),
    "tcd": ("TCD", "TCDScheduler", {}),
    "unipc": ("UniPC", "UniPCMultistepScheduler", {}),
}
_SCHEDULES: dict[str, tuple[str, dict[str, object]]] = {
    "karras": ("Karras", {"use_karras_sigmas": True}),
    "exponential": ("Exponential", {"use_exponential_sigmas": True, "timestep_spacing": "linspace"}),
    "beta": ("Beta", {"use_beta_sigmas": True, "timestep_spacing": "linspace"}),
    "sgm uniform": ("SGM Uniform", {"timestep_spacing": "trailing"}),
    "simple": ("Simple", {"timestep_spacing": "trailing"}),
    "trailing": ("Trailing", {"timestep_spacing": "trailing"}),
    "leading": ("Leading", {"timestep_spacing": "leading"}),
    "linspace": ("Linspace", {"timestep_spacing": "linspace"}),
}
_SIGMA_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_NOT_FIELDS = frozenset({"_class_name", "_diffusers_version", "_use_default_values"})
_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_MAX_TRAIN_TIMESTEPS = 10_000
NOT_LINEAR: dict[str, str] = {
    "clip_sample": "False: clipping the predicted sample is not linear, so the step has no coefficient table",
    "thresholding": "False: dynamic thresholding is not linear, so the step has no coefficient table",
    "use_flow_sigmas": "False: flow matching is not part of the Stable Diffusion family",
    "use_dynamic_shifting": "False: flow matching is not part of the Stable Diffusion family",
}
"""Fields that a model's configuration may switch on, but a schedule cannot be made with; and what is wanted instead."""
_INTEGER_RANGES: dict[str, tuple[int, int]] = {
    "num_train_timesteps": (1, _MAX_TRAIN_TIMESTEPS),
    "original_inference_steps": (1, 1000),
    "solver_order": (1, 4),
    "steps_offset": (0, 1000),
}

FieldValue = bool | int | float | str | tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A scheduler class of diffusers and the fields it is built with, hashable.

    class_name: key of `SCHEDULER_CLASSES`. fields: (name, value) sorted by name; lists are tuples.
    """

    class_name: str
    fields: tuple[tuple[str, FieldValue], ...]

    def field(self, name: str) -> FieldValue:
        """The value of a field, the class's default if it was not given; None if the class has no such field."""
        return dict(self.fields).get(name, _defaults(self.class_name).get(name))

    def build(self) -> Any:
        """A new scheduler object, shared with nobody. Raises RequestError with the class's own complaint."""
        try:
            return scheduler_class(self.class_name)(**dict(self.fields))
        except Exception as problem:  # third-party constructors raise whatever their configuration provokes
            raise refusal(self.class_name, problem) from problem


def refusal(class_name: str, problem: Exception) -> RequestError:
    """The error for an exception that a diffusers scheduler raised."""
    reason = f"{type(problem).__name__}: {problem}"[:240]
    return RequestError("scheduler", class_name, f"settings that this scheduler accepts ({ascii(reason)[1:-1]})")


def resolve_scheduler(
    scheduler: str | Mapping[str, object] | None, base: Mapping[str, object] | None = None
) -> Scheduler:
    """What to build for a request's `scheduler`.

    scheduler: an A1111 label ("dpm++ 2m karras"), a class name of diffusers, a configuration with `_class_name`, or
    None for the model's own. base: the model's scheduler configuration; as in diffusers' `from_config`, the fields
    that the chosen class knows are kept under the chosen ones. Labels always stand for unclipped samples, as in
    A1111; elsewhere the class's defaults hold. Raises RequestError that names the field.
    """
    base = base or {}
    if scheduler is None:
        return _from_fields(_known_class(base.get("_class_name")), _kept(base, base.get("_class_name")), {})
    if isinstance(scheduler, Mapping):
        class_name = _known_class(scheduler.get("_class_name"))
        chosen = {str(name): value for name, value in scheduler.items() if name not in _NOT_FIELDS}
        return _from_fields(class_name, _kept(base, class_name), chosen)
    if not isinstance(scheduler, str):
        raise RequestError("scheduler", scheduler, "a name or a configuration dictionary")
    if scheduler in SCHEDULER_CLASSES:
        return _from_fields(scheduler, _kept(base, scheduler), {})
    return _from_label(scheduler, base)


def scheduler_names() -> tuple[str, ...]:
    """Every label that stands for a sampler; a schedule ("karras", "beta", ...) may follow it."""
    return tuple(_SAMPLERS)


def a1111_names(scheduler: Scheduler) -> tuple[str, str]:
    """(sampler, schedule type) as A1111 writes them into image metadata; the class name where it has no label."""
    sampler = scheduler.class_name
    for shown, class_name, options in _SAMPLERS.values():
        if class_name == scheduler.class_name and all(scheduler.field(name) == v for name, v in options.items()):
            sampler = shown
            break
    for shown, options in _SCHEDULES.values():
        flag = next(iter(options))
        if flag in _SIGMA_FLAGS and scheduler.field(flag) is True:
            return sampler, shown
    return sampler, "SGM Uniform" if scheduler.field("timestep_spacing") == "trailing" else "Automatic"


def _from_label(label: str, base: Mapping[str, object]) -> Scheduler:
    words = " ".join(label[:64].lower().replace("_", " ").split())
    sampler, schedule = _split_label(words) if len(label) <= 64 else (None, None)
    if sampler is None:
        raise RequestError("scheduler", label, f"a diffusers class name or one of: {', '.join(_SAMPLERS)}")
    _, class_name, options = _SAMPLERS[sampler]
    defaults = _defaults(class_name)
    chosen: dict[str, object] = {flag: False for flag in _SIGMA_FLAGS if flag in defaults} | options
    extra = _SCHEDULES[schedule][1] if schedule else {}
    if extra and next(iter(extra)) not in defaults:
        raise RequestError(
            "scheduler", label, f"no schedule type '{schedule}': {class_name} has no {next(iter(extra))}"
        )
    extra = {name: value for name, value in extra.items() if name in defaults}
    kept = _kept(base, class_name)
    if "clip_sample" in defaults:
        kept.setdefault("clip_sample", False)
    return _from_fields(class_name, kept, chosen | extra)


def _split_label(words: str) -> tuple[str | None, str | None]:
    if words in _SAMPLERS:
        return words, None
    for schedule in _SCHEDULES:
        if words.endswith(" " + schedule) and words[: -len(schedule) - 1] in _SAMPLERS:
            return words[: -len(schedule) - 1], schedule
    return None, None


def _known_class(name: object) -> str:
    if isinstance(name, str) and name in SCHEDULER_CLASSES:
        return name
    raise RequestError("scheduler._class_name", name, f"one of: {', '.join(SCHEDULER_CLASSES)}")


def _kept(base: Mapping[str, object], class_name: object) -> dict[str, object]:
    """The fields of the model's configuration that the chosen class knows."""
    defaults = _defaults(_known_class(class_name))
    return {name: value for name, value in base.items() if name in defaults}


def _from_fields(class_name: str, kept: Mapping[str, object], chosen: Mapping[str, object]) -> Scheduler:
    defaults = _defaults(class_name)
    for name in chosen:
        if name not in defaults:
            shown = ascii(name[:64])[1:-1]
            raise RequestError(f"scheduler.{shown}", chosen[name], f"no such field: {class_name} does not have it")
    fields = {name: _checked(name, value, defaults[name]) for name, value in (dict(kept) | dict(chosen)).items()}
    scheduler = Scheduler(class_name, tuple(sorted(fields.items())))
    _check_meaning(scheduler, kept)
    return scheduler


def _checked(name: str, value: object, default: object) -> FieldValue:
    """`value` as the type of the field's default."""
    if isinstance(value, (bool, str)) and type(value) is type(default):
        return value[:64] if isinstance(value, str) else value
    if value is None and default is False:  # as older configurations write it
        return False
    if name == "trained_betas" and value is not None:
        return _betas(value)
    if isinstance(default, list):
        return _indices(name, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not isinstance(default, (bool, str)):
        return _number(name, value, default)
    if default is None and (value is None or isinstance(value, str)):
        return None if value is None else value[:64]
    raise RequestError(f"scheduler.{name}", value, f"a value like the default {default!r}")


def _number(name: str, value: float, default: object) -> float:
    if isinstance(default, int) and not isinstance(value, int):
        raise RequestError(f"scheduler.{name}", value, "an integer")
    low, high = _INTEGER_RANGES.get(name, (-(2**31), 2**31))
    unbounded = name == "lambda_min_clipped" and value == -math.inf
    if not unbounded and not low <= value <= high:
        raise RequestError(f"scheduler.{name}", value, f"{low} to {high}")
    return float(value) if isinstance(default, float) else value


def _indices(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)) and len(value) <= 1000 and all(type(v) is int for v in value):
        return tuple(value)
    raise RequestError(f"scheduler.{name}", value, "a list of at most 1000 integers")


def _betas(value: object) -> tuple[float, ...]:
    items = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(items, (list, tuple)) or not 0 < len(items) <= _MAX_TRAIN_TIMESTEPS:
        raise RequestError("scheduler.trained_betas", value, f"a list of 1 to {_MAX_TRAIN_TIMESTEPS} numbers")
    if not all(isinstance(b, (int, float)) and 0 <= b <= 1 for b in items):
        raise RequestError("scheduler.trained_betas", value, "numbers from 0 to 1")
    return tuple(float(b) for b in items)


def _check_meaning(scheduler: Scheduler, base: Mapping[str, object]) -> None:
    for name, wants in NOT_LINEAR.items():
        if scheduler.field(name) is True:
            raise RequestError(f"scheduler.{name}", True, wants)
    if str(scheduler.field("variance_type")).startswith("learned"):
        raise RequestError("scheduler.variance_type", scheduler.field("variance_type"), "a fixed variance")
    prediction = scheduler.field("prediction_type") or base.get("prediction_type", "epsilon")
    if prediction not in _PREDICTION_TYPES:
        raise RequestError("scheduler.prediction_type", prediction, f"one of: {', '.join(_PREDICTION_TYPES)}")
    start, end = scheduler.field("beta_start"), scheduler.field("beta_end")
    if isinstance(start, float) and isinstance(end, float) and not 0 < start <= end < 1:
        raise RequestError("scheduler.beta_start", (start, end), "0 < beta_start <= beta_end < 1")


@lru_cache(maxsize=len(SCHEDULER_CLASSES))
def _defaults(class_name: str) -> Mapping[str, Any]:
    parameters = inspect.signature(scheduler_class(class_name).__init__).parameters
    return MappingProxyType({name: p.default for name, p in parameters.items() if name not in ("self", "kwargs")})


@lru_cache(maxsize=len(SCHEDULER_CLASSES))
def scheduler_class(class_name: str) -> Any:
    """The diffusers class for a key of `SCHEDULER_CLASSES`. Raises RequestError if a package it needs is missing."""
    module = SCHEDULER_CLASSES[class_name]
    if class_name == "DPMSolverSDEScheduler" and importlib.util.find_spec("torchsde") is None:
        return getattr(_load_without_torchsde(module), class_name)
    if class_name == "LMSDiscreteScheduler" and importlib.util.find_spec("scipy") is None:
        raise RequestError("scheduler", class_name, "the package scipy (pip install scipy)")
    return getattr(importlib.import_module(f"diffusers.schedulers.{module}"), class_name)


_TORCHSDE_LOCK = threading.Lock()


def _load_without_torchsde(module: str) -> ModuleType:
    """A private copy of the module, loaded while an empty `torchsde` stands in.

    torchsde only draws the Brownian path, which the probe replaces by its own; the stand-in is gone afterwards.
    """
    package = importlib.import_module("diffusers.schedulers")
    spec = importlib.util.spec_from_file_location(
        f"diffusers.schedulers._bridle_{module}", f"{package.__path__[0]}/{module}.py"
    )
    if spec is None or spec.loader is None:
        raise RequestError("scheduler", module, "a complete installation of diffusers")
    loaded = importlib.util.module_from_spec(spec)
    with _TORCHSDE_LOCK:
        sys.modules["torchsde"] = ModuleType("torchsde")
        try:
            spec.loader.exec_module(loaded)
        finally:
            del sys.modules["torchsde"]
    return loaded
