"""Bridle: an inference engine for controllable Stable Diffusion."""

import logging

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

logging.getLogger("bridle").addHandler(logging.NullHandler())

__all__ = [
    "BridleError",
    "Cancelled",
    "ControlNet",
    "LimitError",
    "ModelLoadError",
    "NumericFault",
    "Request",
    "RequestError",
    "T2IAdapter",
    "UnsupportedError",
]
