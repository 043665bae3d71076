"""What a request becomes before the step loop: row plans, encoded once and described only by primitives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.networks.configs import ControlNetConfig
from bridle.rows import KV
from bridle.uploads import sent

StepScales = NDArray[np.float32]
"""[S] or [S, points]: the strength of a control at each step of the schedule; 0 where it is not active."""


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of the latent canvas, in latent cells. Columns wrap around the right edge."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, canvas: Tensor) -> Tensor:
        """The window of a canvas [..., H, W]: [..., height, width]."""
        columns = sent(self._columns(canvas.shape[-1]), canvas.device)
        return canvas[..., self.top : self.top + self.height, :].index_select(-1, columns)

    def add_to(self, canvas: Tensor, part: Tensor) -> None:
        """canvas[window] += part, for a canvas [H, W] at least as wide as the window."""
        canvas[self.top : self.top + self.height].index_add_(1, self._columns(canvas.shape[-1]), part)

    def scaled(self, factor: int) -> "Window":
        """The same rectangle where a cell is `factor` wide."""
        return Window(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def _columns(self, width: int) -> Tensor:
        return torch.arange(self.left, self.left + self.width) % width


@dataclass(frozen=True, slots=True)
class StaticResidual:
    """P3 for one row: `values` [1, C, h', w'] added at `point` with scale[step], under mask [1, 1, h', w'] or None."""

    point: str
    values: Tensor
    scale: StepScales
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class BranchPlan:
    """A branch for one row. time: [S, sumC]. kv: its own keys and values. hint: [1, C0, h, w]. scale: [S, points]."""

    weights: Mapping[str, Tensor]
    config: ControlNetConfig
    time: Tensor
    kv: tuple[KV, ...]
    hint: Tensor
    scale: StepScales
    mask: Tensor | None
    global_pool: bool


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """P4 for one row: tokens with a softmax of their own beside the text's.

    kv: one KV [1, L, H, d] per site. scale: [S]. weights: per site a factor or a map [N] over positions, or None for 1.
    """

    kv: tuple[KV, ...]
    scale: StepScales
    weights: tuple[float | Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class TokenBias:
    """P6 for one row: scale[step] times a map [N] is added to the scores of text columns. maps: per site, None = not there."""

    columns: tuple[int, ...]
    maps: tuple[Tensor | None, ...]
    scale: StepScales


@dataclass(frozen=True, slots=True)
class TokenShift:
    """P9 for one row: share[step] of the mass of each text column moves into a window [N] of sum 1. windows: per site."""

    columns: tuple[int, ...]
    windows: tuple[Tensor | None, ...]
    share: StepScales


@dataclass(frozen=True, slots=True)
class MixPlan:
    """P7 for one row: its text map becomes source_map @ (mapper * source[step]) + map * own[step], column by column.

    row: index, in the track's source, of the row whose queries and keys make the source map. mapper: [L', L]. source, own:
    [S, L]. biases, shifts: edits of the source map, before it is mapped; their columns are the source's.
    """

    row: int
    mapper: Tensor
    source: StepScales
    own: StepScales
    biases: tuple[TokenBias, ...] = ()
    shifts: tuple[TokenShift, ...] = ()


@dataclass(frozen=True, slots=True)
class SelfSource:
    """P13 for one row: its self-attention reads the map of a row of the track's source.

    active: [S]. levels: whether each resolution level takes part.
    """

    row: int
    active: NDArray[np.bool_]
    levels: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """P12 for one row: its sample is a noised flat background outside the mask, for as many steps as there are picks.

    mask: [1, h, w]. backgrounds: clean latents [n, C, h, w]. noise: [C, h, w]. picks: the background of each step.
    """

    mask: Tensor
    backgrounds: Tensor
    noise: Tensor
    picks: tuple[int, ...]


@dataclass(slots=True)
class RowPlan:
    """Everything about one row that does not depend on the noisy latent. Controls add to its lists.

    conditional: False for the unconditional row of classifier-free guidance. coefficient: of its output in the guided sum.
    kv: one KV [1, L, H, d] per cross-attention site. time: [S, sumC]. extra_channels: [1, Cx, h, w] or None.
    context: [1, L, D] and pooled, time_ids are kept until all controls are lowered, for branches with weights of their own.
    window: the part of the canvas it sees, None = all. blend: [h, w] weight of its output there, None = 1. region: index of
    the latent region it belongs to; None = the request's own prompt.
    weights: of the text's output, a map [N] per site, None = 1. factors: [S, L] on the columns of the text's map, or None.
    """

    conditional: bool
    coefficient: float
    context: Tensor
    pooled: Tensor | None
    time_ids: Tensor | None
    kv: tuple[KV, ...]
    time: Tensor
    extra_channels: Tensor | None = None
    window: Window | None = None
    blend: Tensor | None = None
    region: int | None = None
    bootstrap: Bootstrap | None = None
    weights: tuple[Tensor, ...] | None = None
    factors: StepScales | None = None
    mix: MixPlan | None = None
    self_source: SelfSource | None = None
    residuals: list[StaticResidual] = field(default_factory=list)
    branches: list[BranchPlan] = field(default_factory=list)
    segments: list[SegmentPlan] = field(default_factory=list)
    biases: list[TokenBias] = field(default_factory=list)
    shifts: list[TokenShift] = field(default_factory=list)

    def alone(self, **changes: Any) -> "RowPlan":
        """The plan with `changes` and with lists of its own, still empty: for before controls are lowered."""
        return replace(self, residuals=[], branches=[], segments=[], biases=[], shifts=[], **changes)


def by_window(rows: Iterable[RowPlan]) -> dict[Window | None, list[RowPlan]]:
    """The rows that see each part of the canvas."""
    found: dict[Window | None, list[RowPlan]] = {}
    for row in rows:
        found.setdefault(row.window, []).append(row)
    return found


def window_scales(steps: int, start: float, end: float, scale: float) -> StepScales:
    """[S]: `scale` in the steps of the window, else 0.

    Step i is active unless i / S < start or (i + 1) / S > end (diffusers `controlnet_keep`).
    """
    active = [not (i / steps < start or (i + 1) / steps > end) for i in range(steps)]
    return np.where(np.array(active, dtype=bool), np.float32(scale), np.float32(0.0)).astype(np.float32)
