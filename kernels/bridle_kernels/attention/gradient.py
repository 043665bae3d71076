"""Attention on a GPU where gradients are wanted: of Q, K and V, from outputs, captured columns and log-sum-exps.

A segment's map and output are one autograd function over Triton kernels; weights, sums, the gate and what is done with
reports are PyTorch's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bridle_kernels.attention import triton_gradient as kernels
from bridle_kernels.attention.gpu_operands import GpuSegment, capture_columns, column_mix, dense, gpu_segment, numbers
from bridle_kernels.attention.gpu_problem import Problem, blocks, strides
from bridle_kernels.attention.launch import gradient_tiles
from bridle_kernels.attention.reference import deliver, weighted
from bridle_kernels.attention.segment import Capture, Segment
from bridle_kernels.attention.shapes import key_count
from bridle_kernels.triton_launch import launch


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of the map are handed out. taken: [C] int32, output rows. columns: [C or 1, S] int32. per_head: as
    [C, H, N, S], else as [C, 1, N, S], the mean of heads."""

    taken: Tensor
    columns: Tensor
    per_head: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """All of a segment but Q, K and V. own: whether each output row reads its own row of Q, of K, of V."""

    read: GpuSegment
    scale: float
    causal: bool
    captures: tuple[Columns, ...]
    own: tuple[bool, bool, bool]


def attention(
    q: Tensor,
    segments: Sequence[Segment],
    *,
    scale: float,
    causal: bool,
    float32_scores: bool,
    gate: float | Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """See `bridle_kernels.attention`; no segment has a mass shift."""
    q = dense(q)
    total: Tensor | None = None
    for segment in segments:
        term = weighted(_segment(q, segment, scale, causal, float32_scores), segment.weight)
        total = term if total is None else total.float() + term
    return deliver(q.new_zeros(q.shape) if total is None else total, q.dtype, gate, out)


def _segment(q: Tensor, segment: Segment, scale: float, causal: bool, float32_scores: bool) -> Tensor:
    """The output [R, N, H, d] of a segment before its weight; reports on the way."""
    read = replace(gpu_segment(q, segment, float32_scores), weight=None)
    captures = tuple(_columns(capture, segment, q) for capture in segment.captures)
    whole = segment.v_mix is not None
    own = (segment.q_rows is None, segment.k_rows is None, segment.v_rows is None or whole)
    detached = replace(read, k=[k.detach() for k in read.k], v=[v.detach() for v in read.v])
    apply: Callable[..., tuple[Tensor, ...]] = SegmentMap.apply
    term, lse, *found = apply(Setting(detached, scale, causal, captures, own), q, *read.k, *read.v)
    if segment.lse is not None:
        segment.lse.copy_(lse)
    for capture, columns, probabilities in zip(segment.captures, captures, found, strict=True):
        _add(capture, columns, probabilities, segment, read)
    return term


def _columns(capture: Capture, segment: Segment, q: Tensor) -> Columns:
    """What of the map a capture needs: all keys where a pre-mix makes values of them."""
    rows = q.shape[0]
    taken = torch.arange(rows, device=q.device) if capture.rows is None else capture.rows
    if segment.v_mix is not None:
        columns = torch.arange(key_count(segment), dtype=torch.int32, device=q.device)[None]
    else:
        columns = capture_columns(segment, capture, q.device)
    return Columns(taken.int(), columns, capture.out.ndim == 4)


def _add(capture: Capture, columns: Columns, probabilities: Tensor, segment: Segment, read: GpuSegment) -> None:
    if segment.v_mix is not None:
        wanted = capture_columns(segment, capture, probabilities.device)
        mix = column_mix(segment.v_mix, read.seen, columns.taken.long(), wanted)
        probabilities = probabilities @ mix[:, None]
    factors = numbers(capture.scale, len(columns.taken), probabilities.device)
    found = probabilities * factors[:, None, None, None]
    capture.out.add_(found if columns.per_head else found[:, 0])


class SegmentMap(torch.autograd.Function):
    """(setting, q, *k, *v) to the output [R, N, H, d], the log-sum-exp [R, H, N] and the captured columns."""

    @staticmethod
    def forward(ctx: Any, setting: Setting, q: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        problem = Problem(q, setting.read, setting.scale)
        rows, queries, heads, dim = q.shape
        out = q.new_empty(rows, queries, heads * dim)
        lse = problem.forward(None, out, None, setting.causal, True, (True, True, False))
        assert lse is not None
        found = [_captured(problem, columns, lse) for columns in setting.captures]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, lse)
        ctx.setting = setting
        return out.view(q.shape), lse, *found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, out: Tensor | None, lse: Tensor | None, *found: Tensor | None) -> tuple[Tensor | None, ...]:
        q, level = ctx.saved_tensors
        back = Backward.of(q, level, ctx.setting, out, lse, found)
        pieces = len(ctx.setting.read.k)
        wanted = ctx.needs_input_grad[2:]
        # The sums of D that dQ leaves are what dK needs.
        queries, delta = back.queries()
        keys = [back.keys(p, delta) if wanted[p] else None for p in range(pieces)]
        values = [back.values(p) if wanted[pieces + p] else None for p in range(pieces)]
        return None, queries, *keys, *values


def _captured(problem: Problem, columns: Columns, lse: Tensor) -> Tensor:
    """[C, H or 1, N, S]."""
    _, queries, heads, _ = problem.q.shape
    count, width = len(columns.taken), columns.columns.shape[1]
    out = problem.q.new_zeros(count, heads if columns.per_head else 1, queries, width, dtype=torch.float32)
    ones = problem.q.new_ones(count, dtype=torch.float32)
    target = out if columns.per_head else out.expand(-1, heads, -1, -1)
    problem.capture(lse, columns.taken, columns.columns, ones, target)
    return out


@dataclass(frozen=True, slots=True)
class Backward:
    """The gradients of one segment. gradient: [R, N, H, d], of its output. lse: [R, H, N]; lse_gradient too.
    map_gradient: [R, H, N, T], where slots [R, keys] names the column of each key, or None."""

    q: Tensor
    setting: Setting
    gradient: Tensor
    lse: Tensor
    lse_gradient: Tensor
    map_gradient: Tensor | None
    slots: Tensor | None

    @staticmethod
    def of(
        q: Tensor,
        lse: Tensor,
        setting: Setting,
        gradient: Tensor | None,
        lse_gradient: Tensor | None,
        found: Sequence[Tensor | None],
    ) -> "Backward":
        """From what flows into the outputs of `SegmentMap`, None for nothing."""
        given = [(c, g) for c, g in zip(setting.captures, found, strict=True) if g is not None and g.shape[3]]
        into = torch.zeros_like(q) if gradient is None else gradient.to(q.dtype)
        level = torch.zeros_like(lse) if lse_gradient is None else lse_gradient.contiguous()
        maps, slots = _map_gradient(given, q, setting.read.seen.shape[1]) if given else (None, None)
        return Backward(q, setting, into.contiguous(), lse, level, maps, slots)

    def queries(self) -> tuple[Tensor, Tensor]:
        """dQ, and D [R, H, N]."""
        read = self.setting.read
        rows, count, heads, _ = self.q.shape
        t = self._tiles()
        out, delta = torch.zeros_like(self.q, memory_format=torch.contiguous_format), torch.empty_like(self.lse)
        given = {
            **self._common(),
            **self._maps(),
            "ks": tuple(read.k),
            "vs": tuple(read.v),
            "source": read.q_rows,
            "k_rows": read.k_rows,
            "v_rows": read.v_rows,
            "lengths": read.lengths,
            "lse_gradient": self.lse_gradient,
            "delta": delta,
            "out": out,
            "sizes": tuple(k.shape[1] for k in read.k),
            "k_strides": self._steps(strides(read.k)),
            "v_strides": self._steps(strides(read.v)),
            "own": int(self.setting.own[0]),
        }
        constants = {"PIECES": len(read.k), **self._constants(), "MAPS": self.slots is not None}
        grid = ((count + t.queries - 1) // t.queries, heads, rows)
        launch(kernels._queries, grid, given, constants, num_warps=t.warps, num_stages=t.stages)
        return out, delta

    def keys(self, piece: int, delta: Tensor) -> Tensor:
        """dK of a piece [rows, L, H, d]. delta: of `queries`."""
        read = self.setting.read
        given = {**self._maps(), "v_rows": read.v_rows, "v": read.v[piece], "delta": delta, "k": read.k[piece]}
        given |= {"v_strides": self._steps(strides([read.v[piece]]))}
        source, own = read.k_rows, self.setting.own[1]
        return self._of_piece(kernels._keys, read.k, piece, source, own, given, {"MAPS": self.slots is not None})

    def values(self, piece: int) -> Tensor:
        """dV of a piece [rows, L, H, d]."""
        read = self.setting.read
        given = {"k_rows": read.k_rows, "k": read.k[piece]}
        return self._of_piece(kernels._values, read.v, piece, read.v_rows, self.setting.own[2], given, {})

    def _of_piece(
        self,
        kernel: Any,
        parts: Sequence[Tensor],
        piece: int,
        source: Tensor,
        own: bool,
        given: dict[str, Any],
        flags: dict[str, int | bool],
    ) -> Tensor:
        """The gradient of parts[piece]. source: which of its rows each output row reads, where `own` is not set."""
        read, part = self.setting.read, parts[piece]
        rows, size, heads, _ = part.shape
        if rows == 1:
            source, own = torch.zeros_like(source), self.q.shape[0] == 1
        t = self._tiles()
        out = torch.empty_like(part, memory_format=torch.contiguous_format)
        arguments = {
            **self._common(),
            **given,
            "source": source,
            "q_rows": read.q_rows,
            "lengths": read.lengths[piece],
            "out": out,
            "k_strides": self._steps(strides([read.k[piece]])),
            "first": sum(k.shape[1] for k in read.k[:piece]),
            "size": size,
            "own": int(own),
        }
        grid = ((size + t.keys - 1) // t.keys, heads, rows)
        constants = {**self._constants(), **flags}
        launch(kernel, grid, arguments, constants, num_warps=t.warps, num_stages=t.stages)
        return out

    def _common(self) -> dict[str, Any]:
        rows, queries, heads, _ = self.q.shape
        bias = self.setting.read.bias
        return {
            "q": self.q,
            "gradient": self.gradient,
            "bias": bias,
            "lse": self.lse,
            "q_strides": self._steps(self.q.stride()[:3]),
            "gradient_strides": self._steps(self.gradient.stride()[:3]),
            "bias_strides": (0, 0, 0) if bias is None else bias.stride()[:3],
            "rows": rows,
            "queries": queries,
            "heads": heads,
            "scale": self.setting.scale,
        }

    def _maps(self) -> dict[str, Any]:
        maps = self.map_gradient
        return {
            "map_gradient": maps,
            "slots": self.slots,
            "map_strides": (0, 0, 0) if maps is None else maps.stride()[:3],
            "keys": self.setting.read.seen.shape[1],
        }

    def _constants(self) -> dict[str, int | bool]:
        t, read = self._tiles(), self.setting.read
        flags = {"FLOAT32": read.float32, "CAUSAL": self.setting.causal, "BIAS": read.bias is not None}
        return {**blocks(t), "BLOCK_L": t.keys, "DIM": self.q.shape[3], "UNIT": self._unit(), **flags}

    def _tiles(self) -> Any:
        return gradient_tiles(self.q.shape[3], torch.float32 if self.setting.read.float32 else self.q.dtype)

    def _steps(self, steps: Sequence[int]) -> tuple[int, ...]:
        return tuple(step // self._unit() for step in steps)

    def _unit(self) -> int:
        """See `Problem.unit`."""
        aligned = self.q.shape[3] % 8 == 0 and self.gradient.data_ptr() % 16 == 0
        return Problem(self.q, self.setting.read, 1.0).unit if aligned else 1


def _map_gradient(given: Sequence[tuple[Columns, Tensor]], q: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """What flows into the map, [R, H, N, T] of its columns, and which of them each key is, [R, keys] int32, -1 for none."""
    rows, _, heads, _ = q.shape
    parts = [_of_rows(columns, gradient, rows, heads) for columns, gradient in given]
    columns = torch.cat([named for named, _ in parts], 1)
    shared = max(part.shape[1] for _, part in parts)
    gradient = torch.cat([part.expand(-1, shared, -1, -1) for _, part in parts], 3)
    # A key that is captured several times has one column: the sum, under the name of the first.
    same = (columns[:, :, None] == columns[:, None]) & (columns >= 0)[:, :, None]
    merged = gradient @ same[:, None].float()
    first = same.int().argmax(2).int()
    slots = torch.full((rows, keys + 1), -1, dtype=torch.int32, device=q.device)
    slots.scatter_(1, torch.where(columns >= 0, columns, keys).long(), first)
    return merged.expand(-1, heads, -1, -1), slots[:, :keys].contiguous()


def _of_rows(columns: Columns, gradient: Tensor, rows: int, heads: int) -> tuple[Tensor, Tensor]:
    """Columns [R, T], -1 for none, and gradients [R, H or 1, N, T], of one capture, whose rows can be any."""
    own = columns.taken[None] == torch.arange(rows, device=gradient.device)[:, None]
    named = columns.columns.expand(len(columns.taken), -1)
    spread = torch.where(own[:, :, None], named[None], -1).flatten(1)
    if not columns.per_head:
        gradient = gradient / heads
    found = torch.einsum("rc,chns->rhncs", own.float(), gradient)
    return spread, found.flatten(3)
