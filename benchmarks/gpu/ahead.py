"""Part "ahead:FAMILY": what needs time and no quiet machine: weights are written, then peers compiled."""

import importlib.util
from collections.abc import Iterator
from typing import Any

from gpu import models
from gpu.part import Context


def run(context: Context) -> Iterator[dict[str, Any]]:
    """What was done."""
    yield from models.run(context)
    if context.device == "cuda" and importlib.util.find_spec("diffusers") is not None:
        from gpu.timings import compile_ahead

        yield from compile_ahead(context)
