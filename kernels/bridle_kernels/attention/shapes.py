"""Checks of the arguments, by name, before any work."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bridle_kernels.attention.segment import Capture, MassShift, Segment

_Shape = tuple[int | tuple[int, ...], ...]


def check(
    q: Tensor, segments: Sequence[Segment], causal: bool, gate: float | Tensor | None, out: Tensor | None
) -> None:
    """Raises ValueError unless everything fits together."""
    if q.ndim != 4 or 0 in q.shape[1:]:
        raise ValueError(f"attention: q is {list(q.shape)}, wants [R, N, H, d]")
    if not segments:
        raise ValueError("attention: segments is empty, wants at least one")
    rows, queries, heads, dim = q.shape
    for segment in segments:
        _check_pieces(segment, rows, heads, dim)
        _check_fields(segment, rows, queries, heads)
        for name, index, low, high in _indices(segment, rows):
            _check_range(name, index, low, high)
    if causal and (len(segments) > 1 or not _is_plain(segments[0])):
        raise ValueError("attention: causal wants one segment of keys and values, without any other field")
    if isinstance(gate, Tensor) and gate.ndim:
        _check_shape("gate", gate, (rows,))
    if out is not None:
        _check_shape("out", out, (rows, queries, heads * dim))


def _is_plain(segment: Segment) -> bool:
    fields = (segment.k_rows, segment.v_rows, segment.bias, segment.v_mix)
    lengths = [piece.length for piece in segment.pieces]
    return not segment.reads_map and all(field is None for field in (*fields, *lengths))


def _check_pieces(segment: Segment, rows: int, heads: int, dim: int) -> None:
    if not segment.pieces:
        raise ValueError("attention: a segment has no pieces")
    for piece in segment.pieces:
        for name, part, source in (("k", piece.k, segment.k_rows), ("v", piece.v, segment.v_rows)):
            keys = part.shape[1] if segment.v_mix is not None and part.ndim == 4 else piece.k.shape[1]
            if part.ndim != 4 or part.shape[1:] != (keys, heads, dim) or keys == 0:
                raise ValueError(f"attention: {name} is {list(part.shape)}, wants [rows, L, {heads}, {dim}]")
            if source is None and part.shape[0] not in (1, rows):
                raise ValueError(f"attention: {name} has {part.shape[0]} rows, wants 1, {rows}, or row indices")
        if piece.length is not None:
            _check_shape("length", piece.length, (rows,))


def _check_fields(segment: Segment, rows: int, queries: int, heads: int) -> None:
    keys, values = key_count(segment), value_count(segment)
    for name in ("k_rows", "v_rows", "q_rows"):
        if getattr(segment, name) is not None:
            _check_shape(name, getattr(segment, name), (rows,))
    if isinstance(segment.weight, Tensor):
        _check_shape("weight", segment.weight, (rows,) if segment.weight.ndim == 1 else (rows, queries))
    if segment.bias is not None:
        _check_shape("bias", segment.bias, ((1, rows), (1, heads), (1, queries), keys))
    if segment.v_mix is not None:
        _check_shape("v_mix", segment.v_mix, ((1, rows), keys, values))
    if segment.lse is not None:
        _check_shape("lse", segment.lse, (rows, heads, queries))
    if segment.mass is not None:
        _check_mass(segment.mass, rows, queries, heads)
    for capture in segment.captures:
        _check_capture(capture, rows, queries, heads, values)


def _check_mass(mass: MassShift, rows: int, queries: int, heads: int) -> None:
    _check_shape("mass.columns", mass.columns, ((1, rows), tuple(mass.columns.shape[-1:])))
    count = mass.columns.shape[1]
    if isinstance(mass.share, Tensor):
        _check_shape("mass.share", mass.share, ((1, rows), count))
    _check_shape("mass.window", mass.window, ((1, rows), (1, count), queries))
    if mass.out is not None:
        _check_shape("mass.out", mass.out, (rows, heads, count))


def _check_capture(capture: Capture, rows: int, queries: int, heads: int, values: int) -> None:
    if capture.rows is not None:
        _check_shape("capture.rows", capture.rows, tuple(capture.rows.shape[:1]))
    count = rows if capture.rows is None else capture.rows.shape[0]
    if capture.columns is not None:
        _check_shape("capture.columns", capture.columns, ((1, count), tuple(capture.columns.shape[-1:])))
    columns = values if capture.columns is None else capture.columns.shape[1]
    per_head = (heads,) if capture.out.ndim == 4 else ()
    _check_shape("capture.out", capture.out, (count, *per_head, queries, columns))
    if capture.out.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"attention: capture.out is {capture.out.dtype}, wants torch.float32 or torch.float64")
    if isinstance(capture.scale, Tensor):
        _check_shape("capture.scale", capture.scale, (count,))


def key_count(segment: Segment) -> int:
    """Keys of all pieces."""
    return sum(piece.k.shape[1] for piece in segment.pieces)


def value_count(segment: Segment) -> int:
    """Values of all pieces: the keys, unless `v_mix` maps one to the other."""
    return sum(piece.v.shape[1] for piece in segment.pieces)


def _check_shape(name: str, tensor: Tensor, wants: _Shape) -> None:
    """wants: sizes, or the sizes that are allowed."""
    allowed = [size if isinstance(size, tuple) else (size,) for size in wants]
    if tensor.ndim != len(wants) or any(s not in sizes for s, sizes in zip(tensor.shape, allowed, strict=True)):
        wanted = ", ".join(" or ".join(str(s) for s in sorted(set(sizes), reverse=True)) for sizes in allowed)
        raise ValueError(f"attention: {name} is {list(tensor.shape)}, wants [{wanted}]")


def _indices(segment: Segment, rows: int) -> Iterator[tuple[str, Tensor | None, int, int]]:
    """Every tensor of indices, with the lowest and the highest value it may have."""
    for piece in segment.pieces:
        yield "length", piece.length, 0, piece.k.shape[1]
    yield "k_rows", segment.k_rows, -1, _last_row([piece.k for piece in segment.pieces])
    yield "v_rows", segment.v_rows, -1, _last_row([piece.v for piece in segment.pieces])
    yield "q_rows", segment.q_rows, 0, rows - 1
    if segment.mass is not None:
        yield "mass.columns", segment.mass.columns, -1, key_count(segment) - 1
    for capture in segment.captures:
        yield "capture.columns", capture.columns, -1, value_count(segment) - 1
        yield "capture.rows", capture.rows, 0, rows - 1


def _last_row(parts: list[Tensor]) -> int:
    """Highest row that all parts have; a part with one row has it for every index."""
    several = [part.shape[0] for part in parts if part.shape[0] > 1]
    return min(several) - 1 if several else 2**31 - 1


def _check_range(name: str, index: Tensor | None, low: int, high: int) -> None:
    if index is None or index.numel() == 0 or torch.compiler.is_compiling():
        return
    if index.is_floating_point():
        raise ValueError(f"attention: {name} is {index.dtype}, wants integers")
    least, most = (int(value) for value in index.aminmax())
    if least < low or most > high:
        raise ValueError(f"attention: {name} has values {least}..{most}, wants {low}..{high}")
