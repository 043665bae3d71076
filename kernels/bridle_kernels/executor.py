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

    def upsampled_conv2d(
        self, phases: Sequence["_core.PackedWeights"], sources: Sequence[Tensor], out: Tensor, **options: Any
    ) -> None:
        """See `_core.upsampled_conv2d`."""
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

    def average_pool(self, x: Tensor, out: Tensor) -> None:
        """Means of 2x2 blocks: out [R, ceil(h/2), ceil(w/2), C] of x [R, h, w, C]."""
        ...

    def area_pool(self, x: Tensor, out: Tensor) -> None:
        """Means of the areas that the pixels of out [R, h', w', C] cover of x [R, h, w, C]."""
        ...

    def copy(self, x: Tensor, out: Tensor) -> None:
        """out = x, both of any strides."""
        ...

    def pointwise(self, x: Tensor, out: Tensor, *, scale: float, shift: float, activation: str) -> None:
        """activation(scale * x + shift) of every element."""
        ...

    def time_embedding(self, t: Tensor, frequencies: Tensor, out: Tensor, *, cosines_first: bool) -> None:
        """Sinusoids [S, C] of t [S] times frequencies [C / 2]."""
        ...

    def embedding(self, ids: Tensor, tokens: Tensor, positions: Tensor, out: Tensor) -> None:
        """tokens[ids] + positions: [R, N, C]. Raises IndexError for an id that there is not, ValueError for no position."""
        ...

    def end_token(self, x: Tensor, ids: Tensor, out: Tensor, *, end: int | None) -> None:
        """x [R, N, C] at the end token of each row: [R, C]. See `Ops.end_token`."""
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

    def upsampled_conv2d(
        self, phases: Sequence["_core.PackedWeights"], sources: Sequence[Tensor], out: Tensor, **options: Any
    ) -> None:
        _core.upsampled_conv2d(self._pool, phases, sources, out, **options)

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

    def average_pool(self, x: Tensor, out: Tensor) -> None:
        _core.average_pool(self._pool, x, out)

    def area_pool(self, x: Tensor, out: Tensor) -> None:
        _core.area_pool(self._pool, x, out)

    def copy(self, x: Tensor, out: Tensor) -> None:
        _core.copy(self._pool, x, out)

    def pointwise(self, x: Tensor, out: Tensor, *, scale: float, shift: float, activation: str) -> None:
        _core.pointwise(self._pool, x, out, scale=scale, shift=shift, activation=activation)

    def time_embedding(self, t: Tensor, frequencies: Tensor, out: Tensor, *, cosines_first: bool) -> None:
        _core.time_embedding(self._pool, t, frequencies, out, cosines_first=cosines_first)

    def embedding(self, ids: Tensor, tokens: Tensor, positions: Tensor, out: Tensor) -> None:
        _core.embedding(self._pool, ids, tokens, positions, out)

    def end_token(self, x: Tensor, ids: Tensor, out: Tensor, *, end: int | None) -> None:
        _core.end_token(self._pool, x, ids, out, end=end)


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
