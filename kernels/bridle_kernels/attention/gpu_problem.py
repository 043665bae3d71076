"""The Triton kernels of one segment, launched: its output, log-sum-exp, masses and captured columns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bridle_kernels.attention import triton as forward_kernels
from bridle_kernels.attention import triton_columns as column_kernels
from bridle_kernels.attention.gpu_operands import GpuSegment, GpuShift
from bridle_kernels.attention.launch import Tiles, bucket, column_tiles, is_sound, tiles
from bridle_kernels.triton_launch import launch
from bridle_kernels.triton_variant import DTYPES
from bridle_kernels.tuning import lookup


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
        rows, queries, heads, _ = self.q.shape
        lse = self.q.new_empty(rows, heads, queries, dtype=torch.float32) if wants_lse else None
        self.start(self._tuned(), total, result, gate, causal, lse, place)
        return lse

    def _tuned(self) -> Tiles:
        """What was measured to be fastest, else the rule, which also serves where what was measured is not sound."""
        dim, keys, biased, computed = (
            self.q.shape[3],
            self.read.seen.shape[1],
            self.read.bias is not None,
            self._computed(),
        )
        place = (bucket(dim, keys, biased), DTYPES[computed], self.q.device)
        rule = tiles(dim, computed, keys, biased)
        found = replace(rule, **lookup("attention", *place, forward_kernels._forward))
        sound = computed == torch.float32 or is_sound((found.low, found.high), found.queries, found.warps)
        return found if sound else rule

    def start(
        self,
        t: Tiles,
        total: Tensor | None,
        result: Tensor,
        gate: Tensor | None,
        causal: bool,
        lse: Tensor | None,
        place: tuple[bool, bool, bool],
    ) -> None:
        """`forward` with given tiles. lse: is overwritten, or None."""
        rows, queries, heads, _ = self.q.shape
        read, (first, last, add) = self.read, place
        flags = {
            forward_kernels.WEIGHT: read.weight is not None,
            forward_kernels.GATE: gate is not None and last,
            forward_kernels.LSE: lse is not None,
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
            "v_strides": self._steps(strides(read.v)),
            "fields": sum(bit.value for bit, on in flags.items() if on),
        }
        constants = {**self._constants(), **blocks(t), "BLOCK_L": t.keys, "CAUSAL": causal}
        grid = ((queries + t.queries - 1) // t.queries, heads, rows)
        launch(forward_kernels._forward, grid, given, constants, num_warps=t.warps, num_stages=t.stages)

    def masses(self, lse: Tensor, shift: GpuShift) -> Tensor:
        """[R, H, S]: sums of the shifted columns over the queries, before the shift."""
        rows, _, heads, dim = self.q.shape
        count = shift.columns.shape[1]
        out = self.q.new_empty(rows, heads, count, dtype=torch.float32)
        if count:
            t = column_tiles(dim, self._computed())
            columns = {"columns": shift.columns, "column_stride": count, "count": count}
            given = {**self._map_arguments(), **columns, "lse": lse, "out": out}
            constants = {**self._constants(), **blocks(t), "BLOCK_S": t.keys}
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
        constants = {**self._constants(), **blocks(t), "BLOCK_S": t.keys, "KEEP": shift is not None, "MEAN": mean}
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
            "k_strides": self._steps(strides(read.k)),
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
            "UNIT": self.unit,
        }

    def _steps(self, strides: Sequence[int]) -> tuple[int, ...]:
        """Strides in units."""
        unit = self.unit
        return tuple(stride // unit for stride in strides)

    @property
    def unit(self) -> int:
        """8 where rows and heads of all operands begin at multiples of 8 elements, and their memory at 16 bytes, else 1."""
        operands = (self.q, *self.read.k, *self.read.v)
        steps = (*self.q.stride()[:3], *strides(self.read.k), *strides(self.read.v))
        aligned = all(step % 8 == 0 for step in steps) and all(t.data_ptr() % 16 == 0 for t in operands)
        return 8 if aligned else 1


def blocks(t: Tiles) -> dict[str, int]:
    """Constants of every kernel."""
    return {"LOW": t.low, "HIGH": t.high, "BLOCK_N": t.queries}


def strides(parts: Sequence[Tensor]) -> tuple[int, ...]:
    """Of row, key and head of every piece; one row serves all."""
    return tuple(n for p in parts for n in (0 if p.shape[0] == 1 else p.stride(0), p.stride(1), p.stride(2)))
