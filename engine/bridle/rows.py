"""The primitives: the only thing backends are given.

A *row* is one U-Net evaluation in one step. Controls are lowered to the fields below; a backend evaluates a batch of rows
without knowing which control, or which request, a row belongs to. `controls.md` section 16 derives the list.
Shapes: R rows, C channels, h x w latent, L tokens, H heads, d head dimension.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bridle_kernels.attention import Capture, MassShift

if TYPE_CHECKING:
    from bridle.networks.configs import ControlNetConfig


class Primitive(Enum):
    """What a row may ask for. The value is the name used in messages."""

    ADDITIVE_EMBEDDING = "P1 additive time embedding"
    SECOND_ADAGN = "P1b second AdaGN condition"
    INPUT_CHANNELS = "P2 extra input channels"
    RESIDUALS = "P3 residual adds at named points"
    CROSS_SEGMENTS = "P4 segmented cross-attention"
    SELF_EXTRA_KV = "P5 self-attention with extra keys and values"
    ATTENTION_BIAS = "P6 pre-softmax bias"
    MAP_MIXING = "P7 post-softmax mixing"
    MAP_CAPTURE = "P8 map capture"
    COLUMN_MASS = "P9 column mass and rank-one update"
    MAP_GRADIENT = "P10 map gradient"
    LATENT_GRADIENT = "P11 latent-gradient guidance"
    LATENT_BLEND = "P12 sampler-level blend"
    CROSS_ROW = "P13 cross-row coupling"
    WEIGHT_DELTAS = "P14 weight deltas"
    PARALLEL_TRUNKS = "P15 parallel trunks"
    STEP_TABLES = "P16 per-step tables"


@dataclass(frozen=True, slots=True)
class KV:
    """Keys and values of one attention site, [Rk, L, H, d] each."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True, slots=True)
class ContextPiece:
    """Tokens that share a softmax with the other pieces of their segment.

    sites: one KV per cross-attention site, in `networks.unet.attention_sites` order.
    length: [R] int32, number of valid tokens per row (0 = dropped for that row); None = all of them.
    """

    sites: tuple[KV, ...]
    length: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SiteTerms:
    """What a segment does at one attention site beyond its keys and values.

    weight: factor of its output (P4): a number, per row [R], or per row and query [R, N]. bias: added to the scaled scores
    (P6), [R or 1, H or 1, N or 1, L]. mass: a share of each chosen column's mass is spread over a window (P9). capture:
    where columns of the map are added to (P8).
    """

    weight: float | Tensor = 1.0
    bias: Tensor | None = None
    mass: MassShift | None = None
    capture: Capture | None = None


@dataclass(frozen=True, slots=True)
class ContextSegment:
    """P4: one softmax of the cross-attention.

    k_rows, v_rows, q_rows: [R] int32, the row whose keys, values and queries each row reads; None = its own; -1 in k_rows
    and v_rows = the row has no such segment. v_mix (P7): [R, L, L'] or [1, L, L'], V of the segment is v_mix @ V.
    sites: one per cross-attention site; None = plain everywhere.
    """

    pieces: tuple[ContextPiece, ...]
    k_rows: Tensor | None = None
    v_rows: Tensor | None = None
    q_rows: Tensor | None = None
    v_mix: Tensor | None = None
    sites: tuple[SiteTerms, ...] | None = None

    def primitives(self) -> frozenset["Primitive"]:
        """What this segment asks of a backend."""
        asked = {Primitive.MAP_MIXING} if self.v_mix is not None or self.q_rows is not None else set()
        for terms in self.sites or ():
            asked |= {
                primitive
                for primitive, value in (
                    (Primitive.ATTENTION_BIAS, terms.bias),
                    (Primitive.COLUMN_MASS, terms.mass),
                    (Primitive.MAP_CAPTURE, terms.capture),
                )
                if value is not None
            }
        return frozenset(asked)


@dataclass(frozen=True, slots=True)
class Residual:
    """P3: `x[rows] += scale * mask * values` at one named point.

    values: [r, C, h', w'] (or [1, ...], broadcast). rows: the r batch rows it is added to; None = all.
    scale: [r] float32. mask: [r, 1, h', w'] float32 in [0, 1] or None.
    """

    values: Tensor
    scale: Tensor
    rows: tuple[int, ...] | None = None
    mask: Tensor | None = None


Residuals = Mapping[str, tuple[Residual, ...]]
"""Residuals by point: "conv_in", "block.K" (running tensor and skip copy after encoder block K), "skip.K" (skip copy only,
after the encoder has finished), "mid" (middle block output)."""


@dataclass(frozen=True, slots=True)
class Branch:
    """An encoder copy that is evaluated each step and whose outputs are residuals at "skip.K" and "mid" (ControlNet).

    rows: the batch rows it runs on, r of them. time: [r, sumC] rows of its time table. context: its own keys and values.
    hint: [r, C0, h, w] encoded control image. scale: [r, points] float32. mask: [r, 1, h, w] float32 or None.
    global_pool: residuals are replaced by their spatial mean.
    """

    weights: Mapping[str, Tensor]
    config: "ControlNetConfig"
    rows: tuple[int, ...]
    time: Tensor
    context: tuple[ContextSegment, ...]
    hint: Tensor
    scale: Tensor
    mask: Tensor | None = None
    global_pool: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """One batch of U-Net evaluations.

    sample: [R, 4, h, w], already multiplied by the solver's input scale.
    time: [R, sumC] rows of the time table (P1, P16): the shift of every ResBlock, concatenated in forward order.
    context: segments of every cross-attention (P4).
    extra_channels: [R, Cx, h, w], appended to `sample` before conv_in (P2).
    residuals: static residuals by point (P3). branches: networks that compute more of them each step.
    self_rows: per level, [R] int32, the row whose queries and keys each row's self-attention reads, or None = its own
    (P7 within P13); its values are its own.
    The remaining fields have no implementation yet on any backend: anything but None is refused by name.
    """

    sample: Tensor
    time: Tensor
    context: tuple[ContextSegment, ...]
    extra_channels: Tensor | None = None
    residuals: Residuals | None = None
    branches: tuple[Branch, ...] = ()
    self_rows: tuple[Tensor | None, ...] | None = None
    second_adagn: object | None = None
    self_extra_kv: object | None = None
    map_gradient: object | None = None
    latent_gradient: object | None = None
    weight_deltas: object | None = None
    parallel_trunks: object | None = None

    def primitives(self) -> frozenset[Primitive]:
        """The primitives these rows ask for beyond plain text-to-image."""
        asked = {primitive for field, primitive in _FIELD_PRIMITIVES.items() if getattr(self, field) is not None}
        if self.branches:
            asked.add(Primitive.RESIDUALS)
        return frozenset(asked).union(*(segment.primitives() for segment in self.context))


@dataclass(frozen=True, slots=True)
class StepTerms:
    """How the outputs of all rows become the next samples: the arguments of `guide_step_blend` but the outputs themselves.

    P samples, T terms, one for each row. All of it is on the device of the latents: what a step is told is data.
    """

    latents: Tensor
    coefficients: Tensor
    term_start: Tensor
    term_row: Tensor
    term_coefficient: Tensor
    term_weight: Tensor
    term_top: Tensor
    term_left: Tensor
    weights: Tensor | None = None
    history: Tensor | None = None
    noise: Tensor | None = None
    noise_source: Tensor | None = None
    noise_scale: Tensor | None = None
    known: Tensor | None = None
    known_noise: Tensor | None = None
    known_coefficients: Tensor | None = None
    mask: Tensor | None = None
    has_known: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        """By name, as `guide_step_blend` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


_FIELD_PRIMITIVES = {
    "extra_channels": Primitive.INPUT_CHANNELS,
    "residuals": Primitive.RESIDUALS,
    "self_rows": Primitive.CROSS_ROW,
    "second_adagn": Primitive.SECOND_ADAGN,
    "self_extra_kv": Primitive.SELF_EXTRA_KV,
    "map_gradient": Primitive.MAP_GRADIENT,
    "latent_gradient": Primitive.LATENT_GRADIENT,
    "weight_deltas": Primitive.WEIGHT_DELTAS,
    "parallel_trunks": Primitive.PARALLEL_TRUNKS,
}
