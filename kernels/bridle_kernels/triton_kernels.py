"""The list of all Triton kernels."""

import importlib
from collections.abc import Iterable

from bridle_kernels.triton_variant import Variant

MODULES = (
    "guide_step_blend.triton",
    "attention.triton",
    "attention.triton_columns",
    "attention.triton_gradient",
    "group_norm.triton",
    "layer_norm.triton",
    "geglu.triton",
    "residual_add.triton",
    "resample.triton",
)
"""Modules of `bridle_kernels` that list their variants."""


def variants(modules: Iterable[str] = MODULES) -> list[Variant]:
    """Every specialisation of the kernels of the named modules."""
    found = [importlib.import_module(f"bridle_kernels.{name}") for name in modules]
    return [variant for module in found for variant in module.variants()]
