"""What each process does in the test of the workers: a module of its own, so that they start quickly."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import workers


def share_a_gradient(out: Path) -> None:
    """One worker: a gradient of its own, then everybody's."""
    module = nn.Linear(3, 1, bias=False)
    nn.init.ones_(module.weight)
    own = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])[workers.rank()]
    module(own).sum().backward()
    workers.average_gradients(module)
    slowest = workers.agreed(float(workers.rank()))
    with workers.first_then_others():
        seen = (out / "0").exists()
        torch.save({"gradient": module.weight.grad, "slowest": slowest, "first": not seen}, out / str(workers.rank()))
