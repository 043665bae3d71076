"""The networks' vocabulary beside products, norms and attention, over the C++ core: images, tokens and elements."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle_kernels.activation import Activation
from bridle_kernels.attention.native import DTYPES
from bridle_kernels.executor import Executor
from bridle_kernels.ops import ReferenceOps
from bridle_kernels.pixel_unshuffle.reference import check_sides
from bridle_kernels.time_embedding.reference import frequencies


class NativeLayout(ReferenceOps):
    """The part of `NativeOps` that needs no weights but those it is given."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def average_pool(self, x: Tensor) -> Tensor:
        """See `Ops.average_pool`."""
        if x.dtype not in DTYPES:
            return ReferenceOps.average_pool(x)
        rows, channels, height, width = x.shape
        out = self._executor.empty(rows, (height + 1) // 2, (width + 1) // 2, channels, dtype=x.dtype)
        self._executor.average_pool(self._last(x), out)
        return out.permute(0, 3, 1, 2)

    def spatial_mean(self, x: Tensor) -> Tensor:
        """See `Ops.spatial_mean`."""
        return self._areas(x, (1, 1)) if x.dtype in DTYPES else ReferenceOps.spatial_mean(x)

    def resize_mask(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """See `Ops.resize_mask`."""
        return self._areas(mask, size) if mask.dtype in DTYPES else ReferenceOps.resize_mask(mask, size)

    def pixel_unshuffle(self, x: Tensor, factor: int) -> Tensor:
        """See `Ops.pixel_unshuffle`."""
        if x.dtype not in DTYPES:
            return ReferenceOps.pixel_unshuffle(x, factor)
        check_sides(x, factor)
        rows, channels, height, width = x.shape
        size = (height // factor, width // factor)
        out = self._executor.empty(rows, *size, channels, factor, factor, dtype=x.dtype)
        blocks = x.view(rows, channels, size[0], factor, size[1], factor)
        self._executor.copy(blocks.permute(0, 2, 4, 1, 3, 5), out)
        return out.flatten(3).permute(0, 3, 1, 2)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """See `Ops.activation`."""
        return self._pointwise(x, activation=kind) if x.dtype in DTYPES else ReferenceOps.activation(x, kind)

    def scale_shift(self, x: Tensor, scale: float, shift: float) -> Tensor:
        """See `Ops.scale_shift`."""
        if x.dtype not in DTYPES:
            return ReferenceOps.scale_shift(x, scale, shift)
        return self._pointwise(x, scale=scale, shift=shift)

    def time_embedding(
        self, t: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: int, dtype: torch.dtype
    ) -> Tensor:
        """See `Ops.time_embedding`."""
        if dtype not in DTYPES:
            return ReferenceOps.time_embedding(
                t, dim, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift, dtype=dtype
            )
        times = self._dense(t.float()).flatten()
        out = self._executor.empty(times.shape[0], dim, dtype=dtype)
        found = frequencies(dim, freq_shift)
        self._executor.time_embedding(times, found, out, cosines_first=flip_sin_to_cos)
        return out.view(t.shape[0], -1)

    def embedding(self, token_ids: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `Ops.embedding`."""
        if tokens.dtype not in DTYPES:
            return ReferenceOps.embedding(token_ids, tokens, positions)
        out = self._executor.empty(*token_ids.shape, tokens.shape[1], dtype=tokens.dtype)
        self._executor.embedding(token_ids.contiguous(), tokens, positions, out)
        return out

    def end_token(self, x: Tensor, token_ids: Tensor, eos_token_id: int | None) -> Tensor:
        """See `Ops.end_token`."""
        if x.dtype not in DTYPES:
            return ReferenceOps.end_token(x, token_ids, eos_token_id)
        out = self._executor.empty(x.shape[0], x.shape[2], dtype=x.dtype)
        self._executor.end_token(self._dense(x), token_ids.contiguous(), out, end=eos_token_id)
        return out

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        """See `Ops.concat`."""
        if parts[0].dtype not in DTYPES:
            return ReferenceOps.concat(parts)
        rows, _, *rest = parts[0].shape
        out = self._fresh(parts[0], (rows, sum(part.shape[1] for part in parts), *rest))
        start = 0
        for part in parts:
            self._executor.copy(part, out[:, start : start + part.shape[1]])
            start += part.shape[1]
        return out

    def rows(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """See `Ops.rows`."""
        if x.dtype not in (*DTYPES, torch.int64):
            return ReferenceOps.rows(x, rows)
        out = self._fresh(x, (len(rows), *x.shape[1:]))
        for place, row in enumerate(rows):
            self._executor.copy(x[row], out[place])
        return out

    def _areas(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        out = self._executor.empty(x.shape[0], *size, x.shape[1], dtype=x.dtype)
        self._executor.area_pool(self._last(x), out)
        return out.permute(0, 3, 1, 2)

    def _pointwise(
        self, x: Tensor, *, scale: float = 1.0, shift: float = 0.0, activation: Activation | None = None
    ) -> Tensor:
        flat = self._last(x) if x.ndim == 4 else self._dense(x)
        out = self._executor.empty(*flat.shape, dtype=x.dtype)
        self._executor.pointwise(flat, out, scale=scale, shift=shift, activation=activation or "")
        return out.permute(0, 3, 1, 2) if x.ndim == 4 else out

    def _fresh(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """To be written: an image [R, C, h, w] has its channels last, everything else is in order."""
        if len(shape) != 4:
            return self._executor.empty(*shape, dtype=like.dtype)
        rows, channels, height, width = shape
        return self._executor.empty(rows, height, width, channels, dtype=like.dtype).permute(0, 3, 1, 2)

    def _last(self, image: Tensor) -> Tensor:
        """[R, h, w, C] of an image [R, C, h, w], which is free where its channels are last already."""
        return self._dense(image.permute(0, 2, 3, 1))

    def _dense(self, x: Tensor) -> Tensor:
        """x with its elements in order."""
        if x.is_contiguous():
            return x
        out = self._executor.empty(*x.shape, dtype=x.dtype)
        self._executor.copy(x, out)
        return out
