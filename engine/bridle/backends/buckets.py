"""Numbers of rows that programs are made for: other batches are padded to the next one, so that few programs serve all.

A padded row belongs to nobody: its sample, time and terms are zeros, no term of a guided sum reads it, no row reads its maps,
and its output is dropped. Rows do not see each other in any network, so what it computes changes nothing.
"""

from typing import Any

from torch import Tensor

from bridle.rows import KV, Branch, ContextPiece, ContextSegment, Residual, Rows, SiteTerms, StepTerms
from bridle_kernels.attention import MassShift

_HALVES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)

_ROW_WISE: dict[type, frozenset[str]] = {
    Rows: frozenset({"sample", "time", "extra_channels", "self_rows"}),
    ContextPiece: frozenset({"length"}),
    ContextSegment: frozenset({"k_rows", "v_rows", "q_rows", "v_mix"}),
    SiteTerms: frozenset({"weight", "bias"}),
    MassShift: frozenset({"columns", "share", "window", "out"}),
    KV: frozenset({"k", "v"}),
    Branch: frozenset({"time", "hint", "scale", "mask"}),
    Residual: frozenset({"values", "scale", "mask"}),
    StepTerms: frozenset({"term_row", "term_coefficient", "term_weight", "term_top", "term_left"}),
}
"""Fields whose first dimension counts rows, unless it is 1 and serves all of them."""
_SAMPLE_WISE = frozenset(
    {
        *("latents", "coefficients", "history", "noise", "noise_source", "noise_scale"),
        *("known", "known_noise", "known_coefficients", "mask", "has_known"),
    }
)
"""Those of StepTerms that count samples."""


def bucket(count: int) -> int:
    """The smallest number of rows that a program is made for and that has room for `count`; above the last one, `count`."""
    return next((size for size in _HALVES if size >= count), count)


def room(owner: Any, name: str, tensor: Tensor, rows: int) -> tuple[int, ...]:
    """The shape that the place of a field has in a program for `rows` rows before padding."""
    first = tensor.shape[0] if tensor.ndim else 0
    if isinstance(owner, StepTerms) and name in _SAMPLE_WISE:
        first = bucket(first)
    elif isinstance(owner, StepTerms) and name == "term_start":
        first = bucket(first - 1) + 1
    elif isinstance(owner, KV):
        # Rows that share their text are fewer than the batch; the same program serves them.
        first = bucket(rows) if 1 < first <= rows else first
    elif name in _ROW_WISE.get(type(owner), ()) and first == rows > 1 and _counts_all(owner, rows):
        first = bucket(first)
    return (first, *tensor.shape[1:]) if tensor.ndim else ()


def all_rows(rows: tuple[int, ...], count: int) -> bool:
    """Whether a branch runs on the whole batch."""
    return rows == tuple(range(count))


def _counts_all(owner: Any, rows: int) -> bool:
    """A branch or residual on some rows keeps its own number."""
    if isinstance(owner, Branch):
        return all_rows(owner.rows, rows)
    return owner.rows is None if isinstance(owner, Residual) else True
