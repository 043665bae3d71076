"""Rows that begin alike: what they have in common before their first difference is computed once.

The rows of classifier-free guidance, of regions and of edits read the same latents at the same time step. What tells them apart
is the context, which the first cross-attention is the first to read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, uint8

from bridle.networks.configs import EncoderConfig
from bridle.networks.layout import encoder_layout
from bridle_kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class SharedStart:
    """firsts: a row of each kind, ascending. kinds: for every row, the place of its kind in `firsts`."""

    firsts: tuple[int, ...]
    kinds: tuple[int, ...]

    def narrowed(self, ops: Ops, x: Tensor) -> Tensor:
        """One row of each kind, from x [R, ...]."""
        return ops.rows(x, self.firsts)

    def spread(self, ops: Ops, x: Tensor) -> Tensor:
        """All rows [R, ...], from one of each kind."""
        return ops.rows(x, self.kinds)


def shared_start(inputs: Sequence[Tensor]) -> SharedStart | None:
    """How rows whose `inputs` [R, ...] have the same bits share their start, or None where all rows differ."""
    places: dict[tuple[bytes, ...], int] = {}
    firsts, kinds = [], []
    for row in range(inputs[0].shape[0]):
        key = tuple(x[row].contiguous().view(-1).view(uint8).numpy().tobytes() for x in inputs)
        if key not in places:
            places[key] = len(places)
            firsts.append(row)
        kinds.append(places[key])
    return SharedStart(tuple(firsts), tuple(kinds)) if len(firsts) < len(kinds) else None


def shared_stages(config: EncoderConfig) -> int:
    """The stages of the encoder before the first with a cross-attention, inside which rows part."""
    stages = encoder_layout(config).stages
    return next((k for k, stage in enumerate(stages) if stage.transformer), len(stages))


def points_of_start(config: EncoderConfig) -> tuple[str, ...]:
    """Where residuals would tell rows apart before their context does."""
    return ("conv_in", *(f"block.{k}" for k in range(shared_stages(config) + 1)))


def starts_alike(config: EncoderConfig, points: Iterable[str], self_rows: tuple[Tensor | None, ...] | None) -> bool:
    """Whether nothing but context tells rows apart at first.

    points: of residuals. self_rows: see `Rows`. A network without cross-attention in its encoder shares nothing.
    """
    stages, k = encoder_layout(config).stages, shared_stages(config)
    if k == len(stages) or set(points) & set(points_of_start(config)):
        return False
    return self_rows is None or self_rows[stages[k].level] is None
