"""Attention as nodes: the standard `Attention` where a segment is plain, else products and softmax with their terms.

Term of a segment: weight * softmax(scale * q.K + bias) @ V. A query that sees no key, and a weight of 0, give 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from onnx import TensorProto

from bridle_exporters.onnx_graphs.graph import Graph, Value


@dataclass(frozen=True, slots=True)
class MapOutput:
    """An output with columns [B, S] of the map of one attention, averaged over heads: [B, N, S]."""

    name: str
    columns: Value


def attention(
    graph: Graph, q: Value, segments: Sequence[Any], scale: float | None, causal: bool, float32_scores: bool
) -> Value:
    """[R, N, width]. segments: `Segment`s of values of the graph."""
    first = segments[0]
    if len(segments) == 1 and first.weight == 1.0 and first.bias is None and first.capture is None:
        return _plain(graph, q, first.pieces, scale, causal, float32_scores)
    scale = (q.width // q.heads) ** -0.5 if scale is None else scale
    queries = _cast(graph, _split(graph, q, [0, 2, 1, 3]), float32_scores)
    queries = graph.op("Mul", queries, _number(graph, scale, float32_scores))
    total: Value | None = None
    for segment in segments:
        (piece,) = segment.pieces
        term = (_stacked if piece.k.stacked else _single)(graph, queries, segment, float32_scores)
        total = term if total is None else graph.op("Add", total, term)
    assert total is not None
    if float32_scores and graph.dtype != torch.float32:
        total = graph.op("Cast", total, to=_type(graph.dtype))
    merged = graph.op("Transpose", total, perm=[0, 2, 1, 3])
    return graph.op("Reshape", merged, graph.constant([0, 0, q.width]))


def _plain(graph: Graph, q: Value, pieces: Any, scale: float | None, causal: bool, float32_scores: bool) -> Value:
    k, v = (_joined(graph, [getattr(piece, part) for piece in pieces]) for part in "kv")
    q, k, v = (replace(_cast(graph, x, float32_scores), width=q.width) for x in (q, k, v))
    attributes: dict[str, Any] = {"q_num_heads": pieces[0].k.heads, "kv_num_heads": pieces[0].k.heads}
    if scale is not None:
        attributes["scale"] = scale
    if causal:
        attributes["is_causal"] = 1
    out = graph.op("Attention", q, k, v, **attributes)
    return graph.op("Cast", out, to=_type(graph.dtype)) if float32_scores and graph.dtype != torch.float32 else out


def _joined(graph: Graph, parts: Sequence[Value]) -> Value:
    return parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)


def _single(graph: Graph, q: Value, segment: Any, float32_scores: bool) -> Value:
    """[R, H, N, d]. q: [R, H, N, d], scaled. weight: [R, N]. bias: [R, H, N, L]."""
    (piece,) = segment.pieces
    k = _cast(graph, _split(graph, piece.k, [0, 2, 3, 1]), float32_scores)
    v = _cast(graph, _split(graph, piece.v, [0, 2, 1, 3]), float32_scores)
    bias, blind = _visible(graph, _cast(graph, segment.bias, float32_scores), float32_scores)
    probabilities = graph.op("Softmax", graph.op("Add", graph.op("MatMul", q, k), bias), axis=-1)
    if segment.capture is not None:
        _capture(graph, probabilities, piece.k, segment.capture, float32_scores)
    weight = graph.op("Unsqueeze", _cast(graph, segment.weight, float32_scores), graph.constant([1, 3]))
    return _weighted(graph, graph.op("MatMul", probabilities, v), weight, blind, float32_scores)


def _stacked(graph: Graph, q: Value, segment: Any, float32_scores: bool) -> Value:
    """[R, H, N, d], the sum over P segments, 0 for P = 0. K, V: [R, P, L, H, d]. weight: [R, P, N]. bias: [R, P, N, L]."""
    (piece,) = segment.pieces
    k = _cast(graph, graph.op("Transpose", piece.k, perm=[0, 1, 3, 4, 2]), float32_scores)
    v = _cast(graph, graph.op("Transpose", piece.v, perm=[0, 1, 3, 2, 4]), float32_scores)
    bias = graph.op("Unsqueeze", _cast(graph, segment.bias, float32_scores), graph.constant([2]))
    bias, blind = _visible(graph, bias, float32_scores)
    scores = graph.op("MatMul", graph.op("Unsqueeze", q, graph.constant([1])), k)
    probabilities = graph.op("Softmax", graph.op("Add", scores, bias), axis=-1)
    weight = graph.op("Unsqueeze", _cast(graph, segment.weight, float32_scores), graph.constant([2, 4]))
    terms = _weighted(graph, graph.op("MatMul", probabilities, v), weight, blind, float32_scores)
    return graph.op("ReduceSum", terms, graph.constant([1]), keepdims=0)


def _visible(graph: Graph, bias: Value, float32: bool) -> tuple[Value, Value]:
    """The bias with 0 for queries that see no key, whose softmax would be 0/0, and which these are."""
    best = graph.op("ReduceMax", bias, graph.constant([-1]), keepdims=1)
    blind = graph.op("Equal", best, _number(graph, float("-inf"), float32))
    return graph.op("Where", blind, _number(graph, 0.0, float32), bias), blind


def _weighted(graph: Graph, term: Value, weight: Value, blind: Value, float32: bool) -> Value:
    """weight * term; 0 where the weight is 0 or the query is blind, whatever the term."""
    zero = _number(graph, 0.0, float32)
    factor = graph.op("Where", blind, zero, weight)
    return graph.op("Where", graph.op("Equal", factor, zero), zero, graph.op("Mul", term, factor))


def _capture(graph: Graph, probabilities: Value, keys: Value, capture: MapOutput, float32: bool) -> None:
    """Column -1, and any that is no key, gives zeros."""
    length = graph.op("Shape", keys, start=1, end=2)
    scalar = graph.op("Squeeze", length, graph.constant([0]))
    numbers = graph.op("Range", graph.constant(0), scalar, graph.constant(1))
    numbers = graph.op("Unsqueeze", numbers, graph.constant([0, 2]))
    chosen = graph.op("Equal", numbers, graph.op("Unsqueeze", capture.columns, graph.constant([1])))
    picks = graph.op("Cast", chosen, to=_type(torch.float32 if float32 else graph.dtype))
    columns = graph.op("MatMul", probabilities, graph.op("Unsqueeze", picks, graph.constant([1])))
    means = graph.op("ReduceMean", columns, graph.constant([1]), keepdims=0)
    sizes = ("batch", f"{capture.name}.positions", "columns")
    graph.reports[capture.name] = (_cast(graph, means, True), sizes)


def _split(graph: Graph, x: Value, order: list[int]) -> Value:
    """Tokens [R, N, width] as [R, N, heads, d], permuted."""
    split = graph.op("Reshape", x, graph.constant([0, 0, x.heads, x.width // x.heads]))
    return graph.op("Transpose", split, perm=order)


def _cast(graph: Graph, x: Value, float32: bool) -> Value:
    if not float32 or graph.dtype == torch.float32:
        return x
    return replace(x, name=graph.op("Cast", x, to=TensorProto.FLOAT).name)


def _number(graph: Graph, value: float, float32: bool) -> str:
    return graph.constant(value, torch.float32 if float32 else graph.dtype)


def _type(dtype: torch.dtype) -> int:
    return int(TensorProto.FLOAT if dtype == torch.float32 else TensorProto.FLOAT16)
