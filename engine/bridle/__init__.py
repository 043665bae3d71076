"""Bridle: an inference engine for controllable Stable Diffusion."""

import logging
from importlib.metadata import PackageNotFoundError, version

from bridle.backends.onnx_runtime.options import OrtOptions
from bridle.engine import Engine, load
from bridle.errors import (
    BridleError,
    Cancelled,
    LimitError,
    MemoryBudgetError,
    ModelLoadError,
    NumericFault,
    RequestError,
    UnsupportedError,
)
from bridle.image_prompt import ImagePrompt
from bridle.map_controls import CaptureMaps, InjectMap, LocalBlend, PromptEdit, Reweight
from bridle.region import Region, Views
from bridle.request import ControlNet, Request, T2IAdapter
from bridle.result import BatchError, Result
from bridle.sampler import StepSnapshot

try:
    __version__ = version("bridle")
except PackageNotFoundError:  # run from a source folder that is not installed
    __version__ = "0.0.0"

logging.getLogger("bridle").addHandler(logging.NullHandler())

__all__ = [
    "BatchError",
    "BridleError",
    "Cancelled",
    "CaptureMaps",
    "ControlNet",
    "Engine",
    "ImagePrompt",
    "InjectMap",
    "LimitError",
    "LocalBlend",
    "MemoryBudgetError",
    "ModelLoadError",
    "NumericFault",
    "OrtOptions",
    "PromptEdit",
    "Region",
    "Request",
    "RequestError",
    "Result",
    "Reweight",
    "StepSnapshot",
    "T2IAdapter",
    "UnsupportedError",
    "Views",
    "load",
]
