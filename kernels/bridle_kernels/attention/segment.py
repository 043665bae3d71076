"""What an attention reads and reports. Shapes: R output rows, N queries, L keys, H heads, d head dimension, S columns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """Keys k [Rk, L, H, d] and values v [Rv, L, H, d]; one row of K or V serves every output row.

    length: [R] int32, valid keys per output row in 0..L; None for all L. What lies behind the length is never read.
    """

    k: Tensor
    v: Tensor
    length: Tensor | None = None


@dataclass(frozen=True, slots=True)
class MassShift:
    """A share of some columns of the map, taken from where it is and laid out where a window says:

        A'[u, i] = (1 - share_i) A[u, i] + share_i * window_i[u] * sum_v A[v, i]

    The forward guidance of "Training-Free Layout Control with Cross-Attention Guidance" (arXiv 2304.03373), per head. The
    edited map is never built: values are scaled, and the rest is an update of rank one per column.

    columns: [R or 1, S] int, keys counted over the concatenated pieces; -1 for none. A column that is named twice gives
    away both shares. share: a number or [R or 1, S], usually in [0, 1]. window: [R or 1, S or 1, N], used as it is; one
    that sums to 1 over N keeps the column's mass. out: [R, H, S] or None, is overwritten with the masses
    sum_v A[v, i] before the shift, 0 for column -1 and for rows without the segment.
    """

    columns: Tensor
    share: float | Tensor
    window: Tensor
    out: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """Columns of a segment's map, times `scale`, added to `out`: several layers and steps can share one buffer.

    The map is the one that multiplies V: after softmax, mass shift and V pre-mix (its columns are then values), before
    the segment's weight. Columns behind a row's length and rows without the segment add nothing.

    columns: [C or 1, S] int, counted over the concatenated pieces; -1 adds nothing. None for all L columns (S = L).
    rows: [C] int, output rows to capture, row rows[c] into out[c]; None for all of them (C = R).
    out: [C, H, N, S] for every head, or [C, N, S] for the mean of heads; any strides, float32 or float64.
    scale: a number or [C].
    """

    columns: Tensor | None
    out: Tensor
    rows: Tensor | None = None
    scale: float | Tensor = 1.0


@dataclass(frozen=True, slots=True)
class Segment:
    """One softmax over the concatenation of its pieces.

    weight: factor of its output; a number, per row [R], or per row and query [R, N]. Exactly 0 contributes exactly
    nothing, NaN included. k_rows, v_rows, q_rows: [R] int, the row of K, V and Q that each output row reads; None means
    its own row. -1 in k_rows or v_rows: the row has no such segment and gets 0 from it, as it does where all lengths are
    0. bias: added to the scaled scores, [R or 1, H or 1, N or 1, L] over the concatenated pieces; -inf hides a key; a
    query without any visible key gets 0.
    v_mix: [R or 1, L', L], V becomes v_mix @ V for L' keys and L values; a value whose column is 0 is not read, and the
    lengths count keys. Prompt-to-prompt edits are this (see docs/attention.md).
    mass: shift of column masses. capture: one capture or several. lse: [R, H, N] or None, is overwritten with the log of
    the sum of exp of the scaled and biased scores, -inf where no key is visible.
    """

    pieces: tuple[Piece, ...]
    weight: float | Tensor = 1.0
    k_rows: Tensor | None = None
    v_rows: Tensor | None = None
    q_rows: Tensor | None = None
    bias: Tensor | None = None
    v_mix: Tensor | None = None
    mass: MassShift | None = None
    capture: Capture | tuple[Capture, ...] | None = None
    lse: Tensor | None = None

    @property
    def captures(self) -> tuple[Capture, ...]:
        """`capture` as a tuple."""
        if self.capture is None:
            return ()
        return (self.capture,) if isinstance(self.capture, Capture) else self.capture

    @property
    def reads_map(self) -> bool:
        """Whether anything but the output is asked for: a mass shift, a capture, the log-sum-exp."""
        return self.mass is not None or self.lse is not None or bool(self.captures)
