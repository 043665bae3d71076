"""Correctness before speed: outputs are held against the float32 reference, in bfloat16 against PyTorch's own distance."""

from collections.abc import Mapping

from torch import Tensor

FLOAT32 = 1e-4
"""Largest relative distance of a float32 system."""
BFLOAT16 = {True: 1.25, False: 4.0}
"""Largest distance of a bfloat16 system over that of PyTorch's own bfloat16, by whether the system is ours.

Peers may be less exact than we may, and some are, where they round what PyTorch keeps in float32, such as timesteps: what
they gain by that is theirs, and the report has their distance.
"""


class GateError(Exception):
    """Outputs are wrong."""


def distances(outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative L2 distance of every output. Raises GateError for outputs that are missing or have another shape."""
    if outputs.keys() != reference.keys():
        raise GateError(f"outputs are {sorted(outputs)}, the reference has {sorted(reference)}")
    found = {}
    for name, right in reference.items():
        if outputs[name].shape != right.shape:
            raise GateError(f"{name} is {list(outputs[name].shape)}, the reference {list(right.shape)}")
        found[name] = float((outputs[name].double() - right.double()).norm() / right.double().norm())
    return found


def check_float32(found: Mapping[str, float]) -> None:
    """Raises GateError."""
    for name, distance in found.items():
        if not distance <= FLOAT32:
            raise GateError(f"{name}: relative distance {distance:.2g}, wants at most {FLOAT32:g}")


def check_bfloat16(found: Mapping[str, float], torch_own: Mapping[str, float], ours: bool) -> None:
    """torch_own: the distances of PyTorch's bfloat16. Raises GateError."""
    for name, distance in found.items():
        limit = BFLOAT16[ours] * torch_own[name]
        if not distance <= limit:
            raise GateError(
                f"{name}: relative distance {distance:.3g}, wants at most {BFLOAT16[ours]:g} x {torch_own[name]:.3g}"
            )
