"""Segmented attention: maps that can be shared between rows, mixed, shifted, captured and summed, without storing them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle_kernels.attention import library, reference
from bridle_kernels.attention.segment import Capture, MassShift, Piece, Segment
from bridle_kernels.attention.shapes import check

__all__ = ["Capture", "MassShift", "Piece", "Segment", "attention"]


def attention(
    q: Tensor,
    segments: Sequence[Segment],
    *,
    scale: float | None = None,
    causal: bool = False,
    float32_scores: bool = False,
    gate: float | Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """[R, N, H*d] of queries q [R, N, H, d], of float16, bfloat16, float32 or float64:

        out_r(n) = gate_r * sum_s w_s,r(n) * A_s,r(n) @ M_s V_[v_rows_s(r)]
        A_s,r(n) = softmax_L(scale * q_[q_rows_s(r)](n) . K_[k_rows_s(r)] + bias_s), after its mass shift

    where s runs over `segments`; see `Segment`, `MassShift` and `Capture` for the terms and for what can be reported. Any
    combination of them is allowed. Sums are kept in float32 at least. The whole map [R, H, N, L] is never in memory.

    scale: d^-0.5 if None. causal: query n sees keys 0..n (one segment of keys and values only). float32_scores: scores
    and softmax are computed from float32 copies. gate: factor of the result, a number, a tensor of one, or [R]; exactly 0
    gives exactly 0. out: [R, N, H*d], the result is added to it and it is returned. Gradients flow to Q, K and V, and
    from captured columns, masses and log-sum-exps. Raises ValueError, before any work, for what does not fit together.

    Under `torch.compile` and `torch.export` it is one operator, `torch.ops.bridle.attention`.
    """
    check(q, segments, causal, gate, out)
    serve = library.attention if torch.compiler.is_compiling() else reference.attention
    return serve(q, segments, scale=scale, causal=causal, float32_scores=float32_scores, gate=gate, out=out)
