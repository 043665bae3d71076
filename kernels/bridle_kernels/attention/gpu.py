"""The Triton kernels on GPU tensors; in Triton's interpreter on CPU tensors too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bridle_kernels.attention import triton as forward_kernels
from bridle_kernels.attention import triton_columns as column_kernels
from bridle_kernels.attention.gpu_operands import GpuSegment, GpuShift, dense, gpu_segment, read_mix
from bridle_kernels.attention.launch import WIDEST, Tiles, column_tiles, tiles
from bridle_kernels.attention.reference import deliver
from bridle_kernels.attention.segment import Capture, Segment
from bridle_kernels.attention.shapes import key_count, value_count
from bridle_kernels.triton_launch import launch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels compute in."""


def refusal(q: Tensor, segments: Sequence[Segment], out: Tensor | None = None) -> str | None:
    """None, or why the kernels do not serve these tensors."""
    pieces = [piece for segment in segments for piece in segment.pieces]
    if q.dtype not in DTYPES or any(p.k.dtype != q.dtype or p.v.dtype != q.dtype for p in pieces):
        return "q, k and v want one dtype, float32, float16 or bfloat16"
    if q.shape[3] > WIDEST:
        return f"the head dimension is more than {WIDEST}"
    if out is not None and not out.is_contiguous():
        return "out wants one element after another"
    buffers = [c.out for s in segments for c in s.captures]
    buffers += [s.lse for s in segments if s.lse is not None]
    buffers += [s.mass.out for s in segments if s.mass is not None and s.mass.out is not None]
    if any(buffer.dtype != torch.float32 for buffer in buffers):
        return "what is reported wants float32"
    read = [q, *(tensor for p in pieces for tensor in (p.k, p.v))]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in read):
        return "it has no gradient"
    return None


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
    """See `bridle_kernels.attention`; the arguments are not checked. Nothing waits for the GPU."""
    rows, queries, heads, dim = q.shape
    q = dense(q)
    scale = dim**-0.5 if scale is None else scale
    used = [s for s in segments if s.reads_map or isinstance(s.weight, Tensor) or s.weight != 0.0]
    fused = bool(used) and all(segment.mass is None for segment in used)
    total = None if fused and len(used) == 1 else q.new_zeros(q.shape, dtype=torch.float32)
    result = q.new_empty(rows, queries, heads * dim) if out is None else out
    opening = None if gate is None else _numbers(gate, rows, q.device)
    for index, segment in enumerate(used):
        read = gpu_segment(q, segment, float32_scores)
        problem = Problem(q, read, scale)
        last = fused and index == len(used) - 1
        lse = problem.forward(total, result, opening, causal, segment.reads_map, (index == 0, last, out is not None))
        if lse is not None:
            _report(problem, segment, read, lse, total)
    if fused:
        return result
    summed = q.new_zeros(q.shape) if total is None else total
    return deliver(summed, q.dtype, gate, out)


@dataclass(frozen=True, slots=True)
class Problem:
    """One segment's map: q [R, N, H, d] with consecutive channels."""

    q: Tensor
    read: GpuSegment
    scale: float

    def forward(
        self,
        total: Tensor | None,
        result: Tensor,
        gate: Tensor | None,
        causal: bool,
        wants_lse: bool,
        place: tuple[bool, bool, bool],
    ) -> Tensor | None:
        """Adds the weighted output to `total` [R, N, H, d], or finishes `result` [R, N, H*d]; the log-sum-exp [R, H, N].

        place: whether it is the first segment, the last, and whether the result is added to what is there.
        """
        rows, queries, heads, dim = self.q.shape
        read, (first, last, add) = self.read, place
        lse = self.q.new_empty(rows, heads, queries, dtype=torch.float32) if wants_lse else None
        t = tiles(dim, self._computed(), read.seen.shape[1], read.bias is not None)
        flags = {
            forward_kernels.WEIGHT: read.weight is not None,
            forward_kernels.GATE: gate is not None and last,
            forward_kernels.LSE: wants_lse,
            forward_kernels.FIRST: first,
            forward_kernels.LAST: last,
            forward_kernels.ADD: add,
        }
        nothing = self.q.new_empty(0, dtype=torch.float32)
        given = {
            **self._map_arguments(),
            "vs": tuple(read.v),
            "v_rows": read.v_rows,
            "weight": nothing if read.weight is None else read.weight,
            "gate": nothing if gate is None else gate,
            "total": nothing if total is None else total,
            "out": result,
            "lse": nothing if lse is None else lse,
            "v_strides": self._steps(_strides(read.v)),
            "fields": sum(bit.value for bit, on in flags.items() if on),
        }
        constants = {**self._constants(), **_blocks(t), "BLOCK_L": t.keys, "CAUSAL": causal}
        grid = ((queries + t.queries - 1) // t.queries, heads, rows)
        launch(forward_kernels._forward, grid, given, constants, num_warps=t.warps, num_stages=t.stages)
        return lse

    def masses(self, lse: Tensor, shift: GpuShift) -> Tensor:
        """[R, H, S]: sums of the shifted columns over the queries, before the shift."""
        rows, _, heads, dim = self.q.shape
        count = shift.columns.shape[1]
        out = self.q.new_empty(rows, heads, count, dtype=torch.float32)
        if count:
            t = column_tiles(dim, self._computed())
            columns = {"columns": shift.columns, "column_stride": count, "count": count}
            given = {**self._map_arguments(), **columns, "lse": lse, "out": out}
            constants = {**self._constants(), **_blocks(t), "BLOCK_S": t.keys}
            grid = ((count + t.keys - 1) // t.keys, heads, rows)
            launch(column_kernels._mass, grid, given, constants, num_warps=t.warps, num_stages=t.stages)
        return out

    def capture(self, lse: Tensor, taken: Tensor, columns: Tensor, factors: Tensor, out: Tensor) -> None:
        """Adds factors[c] times the kept share of columns [C or 1, S] of row taken[c] to out [C, H or 1, N, S]."""
        _, queries, heads, dim = self.q.shape
        count, shift = columns.shape[1], self.read.shift
        mean = out.stride(1) == 0
        if not count or not len(taken):
            return
        t = column_tiles(dim, self._computed())
        programs = len(taken) * (1 if mean else heads)
        given = {
            **self._map_arguments(),
            "lse": lse,
            "keep": None if shift is None else shift.keep,
            "taken": taken,
            "columns": columns,
            "factors": factors,
            "out": out,
            "out_strides": tuple(out.stride()),
            "column_stride": 0 if columns.shape[0] == 1 else count,
            "keep_stride": self.read.seen.shape[1],
            "count": count,
        }
        constants = {**self._constants(), **_blocks(t), "BLOCK_S": t.keys, "KEEP": shift is not None, "MEAN": mean}
        grid = ((queries + t.queries - 1) // t.queries, (count + t.keys - 1) // t.keys, programs)
        launch(column_kernels._capture, grid, given, constants, num_warps=t.warps, num_stages=t.stages)

    def _map_arguments(self) -> dict[str, Any]:
        """What every kernel takes to build the map."""
        rows, queries, heads, _ = self.q.shape
        read = self.read
        return {
            "q": self.q,
            "ks": tuple(read.k),
            "q_rows": read.q_rows,
            "k_rows": read.k_rows,
            "lengths": read.lengths,
            "bias": read.bias,
            "sizes": tuple(k.shape[1] for k in read.k),
            "q_strides": self._steps(self.q.stride()[:3]),
            "k_strides": self._steps(_strides(read.k)),
            "bias_strides": (0, 0, 0) if read.bias is None else read.bias.stride()[:3],
            "rows": rows,
            "queries": queries,
            "heads": heads,
            "scale": self.scale,
        }

    def _computed(self) -> torch.dtype:
        """What products are computed in."""
        return torch.float32 if self.read.float32 else self.q.dtype

    def _constants(self) -> dict[str, int | bool]:
        read = self.read
        return {
            "PIECES": len(read.k),
            "DIM": self.q.shape[3],
            "BIAS": read.bias is not None,
            "FLOAT32": read.float32,
            "UNIT": self._unit(),
        }

    def _steps(self, strides: Sequence[int]) -> tuple[int, ...]:
        """Strides in units."""
        unit = self._unit()
        return tuple(stride // unit for stride in strides)

    def _unit(self) -> int:
        """8 where rows and heads of all operands begin at multiples of 8 elements, and their memory at 16 bytes, else 1."""
        operands = (self.q, *self.read.k, *self.read.v)
        steps = (*self.q.stride()[:3], *_strides(self.read.k), *_strides(self.read.v))
        aligned = all(step % 8 == 0 for step in steps) and all(t.data_ptr() % 16 == 0 for t in operands)
        return 8 if aligned else 1


def _blocks(t: Tiles) -> dict[str, int]:
    return {"LOW": t.low, "HIGH": t.high, "BLOCK_N": t.queries}


def _strides(parts: Sequence[Tensor]) -> tuple[int, ...]:
    """Of row, key and head of every piece; one row serves all."""
    return tuple(n for p in parts for n in (0 if p.shape[0] == 1 else p.stride(0), p.stride(1), p.stride(2)))


def _report(problem: Problem, segment: Segment, read: GpuSegment, lse: Tensor, total: Tensor | None) -> None:
    """Fills the buffers of a segment and moves the masses of a shift."""
    if segment.lse is not None:
        segment.lse.copy_(lse)
    moved = None
    if read.shift is not None:
        masses = problem.masses(lse, read.shift)
        if segment.mass is not None and segment.mass.out is not None:
            segment.mass.out.copy_(masses)
        moved = read.shift.share[:, None] * masses
        if total is not None and read.named is not None:
            update = torch.einsum("rsn,rhs,rshd->rnhd", read.shift.window, moved, read.named)
            weight = None if read.weight is None else read.weight[:, :, None, None]
            total += update if weight is None else torch.where(weight == 0.0, 0.0, update * weight)
    for capture in segment.captures:
        _capture(problem, segment, capture, lse, moved)


def _capture(problem: Problem, segment: Segment, capture: Capture, lse: Tensor, moved: Tensor | None) -> None:
    rows, queries, heads, _ = problem.q.shape
    device = problem.q.device
    taken = torch.arange(rows, device=device) if capture.rows is None else capture.rows.long()
    factors = _numbers(capture.scale, len(taken), device)
    per_head = capture.out.ndim == 4
    out = capture.out if per_head else capture.out[:, None].expand(-1, heads, -1, -1)
    columns = _columns(segment, capture, device)
    mix = None
    if segment.v_mix is not None:
        mix = _column_mix(segment.v_mix, problem.read.seen, taken, columns)
        keys = torch.arange(key_count(segment), dtype=torch.int32, device=device)[None]
        every = torch.zeros(len(taken), heads if per_head else 1, queries, keys.shape[1], device=device)
        ones = torch.ones_like(factors)
        problem.capture(lse, taken.int(), keys, ones, every if per_head else every.expand(-1, heads, -1, -1))
        found = every @ mix[:, None] * factors[:, None, None, None]
        capture.out.add_(found if per_head else found[:, 0])
    else:
        problem.capture(lse, taken.int(), columns, factors, out)
    shift = problem.read.shift
    if shift is not None and moved is not None:
        given = moved if per_head else moved.mean(1, keepdim=True)
        chosen = _shifted_columns(shift, taken, columns, mix)
        window = shift.window.index_select(0, taken)
        found = torch.einsum("csn,chs,cst->chnt", window, given.index_select(0, taken), chosen)
        found = found * factors[:, None, None, None]
        capture.out.add_(found if per_head else found[:, 0])


def _numbers(value: float | Tensor, count: int, device: torch.device) -> Tensor:
    """[count] float32 of a number, a tensor of one, or [count]."""
    if isinstance(value, Tensor):
        return value.float().expand(count).contiguous()
    return torch.full((count,), float(value), device=device)


def _columns(segment: Segment, capture: Capture, device: torch.device) -> Tensor:
    """[C or 1, S] int32."""
    if capture.columns is None:
        return torch.arange(value_count(segment), dtype=torch.int32, device=device)[None]
    return capture.columns.to(torch.int32).contiguous()


def _column_mix(mix: Tensor, seen: Tensor, taken: Tensor, columns: Tensor) -> Tensor:
    """[C, L, S]: the captured columns of each captured row's pre-mix, 0 for column -1."""
    read = read_mix(mix, seen).index_select(0, taken)
    index = columns.long().expand(len(taken), -1)[:, None].expand(-1, read.shape[1], -1)
    return torch.where(index >= 0, read.gather(2, index.clamp(min=0)), 0.0)


def _shifted_columns(shift: GpuShift, taken: Tensor, columns: Tensor, mix: Tensor | None) -> Tensor:
    """[C, S, T]: what each shifted column gives to each captured one."""
    named = shift.columns.index_select(0, taken).long()
    if mix is not None:
        return mix.gather(1, named.clamp(min=0)[:, :, None].expand(-1, -1, mix.shape[2]))
    wanted = columns.long()[:, None]
    return ((named[:, :, None] == wanted) & (named[:, :, None] >= 0)).float()
