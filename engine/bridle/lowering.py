"""What a request becomes before the step loop: row plans (static, encoded once) and tracks (one per image)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.networks.configs import ControlNetConfig
from bridle.rows import KV
from bridle.solvers import SolverTable

StepScales = NDArray[np.float32]
"""[S] or [S, points]: the strength of a control at each step of the schedule; 0 where it is not active."""


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


@dataclass(slots=True)
class RowPlan:
    """Everything about one row that does not depend on the noisy latent. Controls add to `residuals` and `branches`.

    kv: one KV [1, L, H, d] per cross-attention site. time: [S, sumC]. extra_channels: [1, Cx, h, w] or None.
    conditional: False for the unconditional row of classifier-free guidance. context: [1, L, D] and added: [1, D'] or
    None are kept until all controls are lowered, for branches with weights of their own.
    """

    conditional: bool
    context: Tensor
    pooled: Tensor | None
    time_ids: Tensor | None
    kv: tuple[KV, ...]
    time: Tensor
    extra_channels: Tensor | None = None
    residuals: list[StaticResidual] = field(default_factory=list)
    branches: list[BranchPlan] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KnownRegion:
    """Inpainting with a plain U-Net: clean latents and noise [C, h, w] outside the mask [1, h, w] (1 = repaint)."""

    clean: Tensor
    noise: Tensor
    mask: Tensor


@dataclass(slots=True)
class Track:
    """One image while it is denoised. latents: [C, h, w] float32. guidance: one coefficient per row."""

    request_index: int
    image_index: int
    rows: tuple[RowPlan, ...]
    guidance: tuple[float, ...]
    table: SolverTable
    latents: Tensor
    generator: torch.Generator
    known: KnownRegion | None = None
    step: int = 0
    cancelled: bool = False
    error: Exception | None = None

    @property
    def finished(self) -> bool:
        """No step is left, or none will be run."""
        return self.error is not None or self.step >= len(self.table)


def window_scales(steps: int, start: float, end: float, scale: float) -> StepScales:
    """[S]: `scale` in the steps of the window, else 0.

    Step i is active unless i / S < start or (i + 1) / S > end (diffusers `controlnet_keep`).
    """
    active = [not (i / steps < start or (i + 1) / steps > end) for i in range(steps)]
    return np.where(np.array(active, dtype=bool), np.float32(scale), np.float32(0.0)).astype(np.float32)
