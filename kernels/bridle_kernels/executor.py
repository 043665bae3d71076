"""What `NativeOps` calls: kernels of the C++ core, run at once or recorded."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.attention import Segment, native, reference
from bridle_kernels.attention.shapes import check
from bridle_kernels.residual_add import ResidualTerm
from bridle_kernels.residual_add.reference import check_term


class Executor(Protocol):
    """Kernels on compact tensors: images [R, h, w, C], matrices [m, C]. `out` is overwritten."""

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor to be written."""
        ...

    def linear(self, weights: "_core.PackedWeights", x: Tensor, out: Tensor, **options: Any) -> None:
        """See `_core.linear`."""
        ...

    def conv2d(self, weights: "_core.PackedWeights", sources: Sequence[Tensor], out: Tensor, **options: Any) -> None:
        """See `_core.conv2d`."""
        ...

    def group_norm(self, sources: Sequence[Tensor], out: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> None:
        """See `_core.group_norm`."""
        ...

    def layer_norm(self, x: Tensor, out: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> None:
        """See `_core.layer_norm`."""
        ...

    def attention(
        self, q: Tensor, segments: Sequence[Segment], gate: float | Tensor | None, out: Tensor | None, **options: Any
    ) -> Tensor:
        """See `bridle_kernels.attention`."""
        ...

    def residual_add(self, x: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor:
        """See `Ops.residual_add`, of x [R, h, w, C], which may be overwritten."""
        ...


class Immediate:
    """Runs every kernel when it is called. Several threads may call; while one has the pool, the others compute alone."""

    def __init__(self, pool: "_core.ThreadPool") -> None:
        self._pool = pool

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """See `Executor`, as all below."""
        return torch.empty(shape, dtype=dtype)

    def linear(self, weights: "_core.PackedWeights", x: Tensor, out: Tensor, **options: Any) -> None:
        _core.linear(self._pool, weights, x, out, **options)

    def conv2d(self, weights: "_core.PackedWeights", sources: Sequence[Tensor], out: Tensor, **options: Any) -> None:
        _core.conv2d(self._pool, weights, sources, out, **options)

    def group_norm(self, sources: Sequence[Tensor], out: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> None:
        _core.group_norm(self._pool, sources, out, weight, bias, **options)

    def layer_norm(self, x: Tensor, out: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> None:
        _core.layer_norm(self._pool, x, out, weight, bias, eps=eps)

    def attention(
        self, q: Tensor, segments: Sequence[Segment], gate: float | Tensor | None, out: Tensor | None, **options: Any
    ) -> Tensor:
        check(q, segments, options["causal"], gate, out)
        if native.refusal(q, segments, out) is not None:
            return reference.attention(q, segments, gate=gate, out=out, **options)
        return native.attention(q, segments, pool=self._pool, gate=gate, out=out, **options)

    def residual_add(self, x: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor:
        out = x.clone()
        terms = [residual_term(residual, x) for residual in residuals]
        _core.residual_add(self._pool, out.flatten(1, 2), terms)
        return out


def residual_term(residual: ResidualTerm, image: Tensor) -> Mapping[str, object]:
    """A residual as the core takes it, for an image [R, h, w, C]. Raises ValueError for what does not fit."""
    rows, height, width, channels = image.shape
    check_term((rows, channels, height, width), residual)
    named = list(range(rows)) if residual.rows is None else list(residual.rows)
    values = residual.values.to(image.dtype).permute(0, 2, 3, 1)
    if values.shape[1:3] != (1, 1):
        values = values.expand(-1, height, width, -1)
    mask = residual.mask
    return {
        "values": values.contiguous().flatten(1, 2),
        "rows": named,
        "scale": residual.scale.float().expand(len(named)).tolist(),
        "mask": None if mask is None else mask.float().expand(len(named), 1, height, width).reshape(len(named), -1),
    }
