"""Bridle: an inference engine for controllable Stable Diffusion."""

import logging
from importlib.metadata import PackageNotFoundError, version

from bridle.engine import Engine, load
from bridle.errors import (
    BridleError,
    Cancelled,
    LimitError,
    ModelLoadError,
    NumericFault,
    RequestError,
    UnsupportedError,
)
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
    "ControlNet",
    "Engine",
    "LimitError",
    "ModelLoadError",
    "NumericFault",
    "Request",
    "RequestError",
    "Result",
    "StepSnapshot",
    "T2IAdapter",
    "UnsupportedError",
    "load",
]
