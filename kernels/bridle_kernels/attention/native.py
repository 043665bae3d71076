"""The C++ kernel on CPU tensors (csrc/ops/attention)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.attention.capture import captured_rows
from bridle_kernels.attention.segment import Capture, MassShift, Piece, Segment

DTYPES = (torch.float32, torch.bfloat16)
"""What the C++ core computes in."""


def refusal(q: Tensor, segments: Sequence[Segment], out: Tensor | None = None) -> str | None:
    """None, or why the kernel does not serve these tensors."""
    if out is not None and (out.dtype != q.dtype or not out.is_contiguous()):
        return "out wants the dtype of q, one element after another"
    if q.dtype not in DTYPES or any(p.k.dtype != q.dtype or p.v.dtype != q.dtype for p in _pieces(segments)):
        return "q, k and v want one dtype, float32 or bfloat16"
    buffers = [c.out for s in segments for c in s.captures]
    buffers += [s.lse for s in segments if s.lse is not None]
    buffers += [s.mass.out for s in segments if s.mass is not None and s.mass.out is not None]
    if any(buffer.dtype != torch.float32 for buffer in buffers):
        return "what is reported wants float32"
    read = [q, *(tensor for p in _pieces(segments) for tensor in (p.k, p.v))]
    if any(tensor.device.type != "cpu" for tensor in (*read, *buffers)):
        return "a tensor is not in CPU memory"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in read):
        return "it has no gradient"
    return None


def attention(
    q: Tensor,
    segments: Sequence[Segment],
    *,
    pool: "_core.ThreadPool",
    scale: float | None = None,
    causal: bool = False,
    float32_scores: bool = False,
    gate: float | Tensor | None = None,
    out: Tensor | None = None,
    isa: str = "",
) -> Tensor:
    """See `bridle_kernels.attention`; the arguments are not checked. isa: of `available_isas()`; empty: the active one."""
    rows, queries, heads, dim = q.shape
    result = q.new_empty(rows, queries, heads * dim) if out is None else out
    _core.attention(
        pool,
        _dense(q),
        segment_operands(segments, q),
        result,
        gate=[1.0] * rows if gate is None else _listed(gate, rows),
        scale=dim**-0.5 if scale is None else scale,
        causal=causal,
        float32_scores=float32_scores,
        accumulate=out is not None,
        isa=isa,
    )
    return result


def segment_operands(segments: Sequence[Segment], q: Tensor) -> list[dict[str, Any]]:
    """Segments as the core takes them, for queries of the shape of q. Whoever keeps the result keeps their memory."""
    return [_segment(segment, q) for segment in segments]


def _pieces(segments: Sequence[Segment]) -> list[Piece]:
    return [piece for segment in segments for piece in segment.pieces]


def _segment(segment: Segment, q: Tensor) -> dict[str, Any]:
    rows, queries, heads, _ = q.shape
    own = list(range(rows))
    keys = sum(piece.k.shape[1] for piece in segment.pieces)
    weights = None
    if isinstance(segment.weight, Tensor):
        weights = segment.weight.float().view(rows, -1).expand(rows, queries)
    return {
        "pieces": [_piece(piece, rows) for piece in segment.pieces],
        "q_rows": own if segment.q_rows is None else segment.q_rows.tolist(),
        "k_rows": own if segment.k_rows is None else segment.k_rows.tolist(),
        "v_rows": own if segment.v_rows is None else segment.v_rows.tolist(),
        "weight": 1.0 if isinstance(segment.weight, Tensor) else float(segment.weight),
        "weights": weights,
        "bias": None if segment.bias is None else segment.bias.float().expand(rows, heads, queries, keys),
        "v_mix": None if segment.v_mix is None else segment.v_mix.float(),
        "mass": None if segment.mass is None else _mass(segment.mass, rows, queries),
        "captures": [_capture(capture, rows) for capture in segment.captures],
        "lse": segment.lse,
    }


def _piece(piece: Piece, rows: int) -> dict[str, Any]:
    lengths = [piece.k.shape[1]] * rows if piece.length is None else piece.length.tolist()
    return {"k": _dense(piece.k), "v": _dense(piece.v), "lengths": lengths}


def _dense(tensor: Tensor) -> Tensor:
    """With consecutive channels."""
    return tensor.detach() if tensor.stride(-1) == 1 else tensor.detach().contiguous()


def _mass(mass: MassShift, rows: int, queries: int) -> dict[str, Any]:
    count = mass.columns.shape[1]
    share = mass.share if isinstance(mass.share, Tensor) else torch.tensor([[mass.share]])
    return {
        "count": count,
        "columns": mass.columns.expand(rows, count).flatten().tolist(),
        "share": share.expand(rows, count).flatten().tolist(),
        "window": mass.window.float().expand(rows, -1, queries),
        "out": mass.out,
    }


def _capture(capture: Capture, rows: int) -> dict[str, Any]:
    taken = captured_rows(capture, rows)
    columns = None if capture.columns is None else capture.columns.expand(len(taken), -1).flatten().tolist()
    return {
        "rows": taken,
        "columns": columns or [],
        "scale": _listed(capture.scale, len(taken)),
        "out": capture.out,
    }


def _listed(value: float | Tensor, count: int) -> list[float]:
    """A number, a tensor of one, or a tensor of `count`, as `count` numbers."""
    found: list[float] = (
        value.reshape(-1).expand(count).tolist() if isinstance(value, Tensor) else [float(value)] * count
    )
    return found
