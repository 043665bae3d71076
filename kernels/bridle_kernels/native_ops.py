"""The vocabulary of the networks over the C++ core: images are kept with their channels last, so that tokens are free."""

import weakref
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.activation.reference import Activation, activate_in_place
from bridle_kernels.attention import Segment, native
from bridle_kernels.attention.native import DTYPES
from bridle_kernels.attention.shapes import check
from bridle_kernels.ops import Pair, ReferenceOps

_NATIVE_ACTIVATIONS: dict[Activation | None, str] = {None: "", "silu": "silu"}


class NativeOps(ReferenceOps):
    """`Ops` on CPU tensors of float32 or bfloat16. What the core has no kernel for, the reference computes.

    Weights are packed at their first use and kept as long as the weights themselves. Results do not depend on `threads`.
    Several threads may call at a time; while one has the pool, the others compute alone.
    """

    def __init__(self, threads: int) -> None:
        self._pool = _core.ThreadPool(threads)
        self._packed: dict[tuple[object, ...], _core.PackedWeights] = {}
        self._floats: dict[tuple[int, ...], Tensor] = {}

    def conv2d(
        self,
        x: Tensor | Pair,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int = 1,
        padding: int | tuple[int, int, int, int] = 1,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        activation: Activation | None = None,
    ) -> Tensor:
        """See `Ops.conv2d`."""
        sources = x if isinstance(x, tuple) else (x,)
        outputs, _, height, width = weight.shape
        widths = [source.shape[1] for source in sources] * (height * width)
        if not _serves(weight, widths):
            return ReferenceOps.conv2d(
                x, weight, bias, stride=stride, padding=padding, shift=shift, residual=residual, activation=activation
            )
        sides = list(padding) if isinstance(padding, tuple) else [padding] * 4
        rows, _, h, w = sources[0].shape
        size = [(h + sides[2] + sides[3] - height) // stride + 1, (w + sides[0] + sides[1] - width) // stride + 1]
        out = torch.empty(rows * size[0] * size[1], outputs, dtype=weight.dtype)
        _core.conv2d(
            self._pool,
            self._weights("conv", [weight], lambda: weight.permute(0, 2, 3, 1).reshape(outputs, -1), widths),
            [_last(source) for source in sources],
            out,
            kernel=[height, width],
            stride=stride,
            padding=sides,
            bias=None if bias is None else self._float(bias),
            shift=None if shift is None else shift.float().contiguous(),
            residual=None if residual is None else _last(residual.expand(rows, outputs, *size)).view(-1, outputs),
            activation=_NATIVE_ACTIVATIONS.get(activation, ""),
        )
        image = out.view(rows, *size, outputs).permute(0, 3, 1, 2)
        return image if activation in _NATIVE_ACTIVATIONS else activate_in_place(image, activation)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        activation: Activation | None = None,
    ) -> Tensor:
        """See `Ops.linear`."""
        outputs, inputs = weight.shape[:2]
        if not _serves(weight, [inputs]):
            return ReferenceOps.linear(x, weight, bias, residual=residual, activation=activation)
        shape = (*x.shape[:-1], outputs)
        flat = None if residual is None else residual.expand(shape).reshape(-1, outputs)
        packed = self._weights("linear", [weight], lambda: weight.flatten(1), [inputs])
        out = self._product(
            packed,
            x,
            outputs,
            None if bias is None else self._float(bias),
            flat,
            _NATIVE_ACTIVATIONS.get(activation, ""),
        )
        return out.view(shape) if activation in _NATIVE_ACTIVATIONS else activate_in_place(out.view(shape), activation)

    def project_heads(
        self, x: Tensor, weights: Sequence[Tensor], heads: int, biases: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """See `Ops.project_heads`: one product for all of the weights."""
        inputs = weights[0].shape[1]
        if not _serves(weights[0], [inputs]):
            return ReferenceOps.project_heads(x, weights, heads, biases)
        widths = [weight.shape[0] for weight in weights]
        packed = self._weights("heads", weights, lambda: torch.cat(list(weights)), [inputs])
        bias = None if biases is None else self._float(*biases)
        out = self._product(packed, x, sum(widths), bias)
        ends = list(accumulate(widths))
        parts = [out[:, end - width : end] for end, width in zip(ends, widths, strict=True)]
        return tuple(part.view(*x.shape[:-1], heads, -1) for part in parts)

    def geglu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Ops.geglu`."""
        outputs, inputs = weight.shape[0] // 2, weight.shape[1]
        if not _serves(weight, [inputs]):
            return ReferenceOps.geglu(x, weight, bias)
        packed = self._weights("geglu", [weight], lambda: weight, [inputs], gated=True)
        return self._product(packed, x, outputs, self._float(bias)).view(*x.shape[:-1], outputs)

    def group_norm(
        self,
        x: Tensor | Pair,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        *,
        activation: Activation | None = None,
        affine: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """See `Ops.group_norm`."""
        if weight.dtype not in DTYPES or activation not in _NATIVE_ACTIVATIONS:
            return ReferenceOps.group_norm(x, weight, bias, groups, eps, activation=activation, affine=affine)
        sources = x if isinstance(x, tuple) else (x,)
        rows, _, height, width = sources[0].shape
        channels = weight.shape[0]
        out = torch.empty(rows, height * width, channels, dtype=weight.dtype)
        scale, shift = affine if affine is not None else (None, None)
        _core.group_norm(
            self._pool,
            [_last(source).view(rows, height * width, -1) for source in sources],
            out,
            self._float(weight),
            self._float(bias),
            groups=groups,
            eps=eps,
            scale=None if scale is None else scale.float().contiguous(),
            shift=None if shift is None else shift.float().contiguous(),
            activation=_NATIVE_ACTIVATIONS[activation],
        )
        return out.view(rows, height, width, channels).permute(0, 3, 1, 2)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See `Ops.layer_norm`."""
        if weight.dtype not in DTYPES:
            return ReferenceOps.layer_norm(x, weight, bias, eps)
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        out = torch.empty_like(flat)
        _core.layer_norm(self._pool, flat, out, self._float(weight), self._float(bias), eps=eps)
        return out.view(x.shape)

    def attention(
        self,
        q: Tensor,
        segments: Sequence[Segment],
        *,
        scale: float | None = None,
        causal: bool = False,
        float32_scores: bool = False,
        gate: float | Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.attention`."""
        named: dict[str, Any] = {"scale": scale, "causal": causal, "float32_scores": float32_scores}
        if native.refusal(q, segments, out) is not None:
            return ReferenceOps.attention(q, segments, gate=gate, out=out, **named)
        check(q, segments, causal, gate, out)
        return native.attention(q, segments, pool=self._pool, gate=gate, out=out, **named)

    def _product(
        self,
        packed: "_core.PackedWeights",
        x: Tensor,
        outputs: int,
        bias: Tensor | None,
        residual: Tensor | None = None,
        activation: str = "",
    ) -> Tensor:
        """[m, outputs] of x [..., K]."""
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        out = torch.empty(flat.shape[0], outputs, dtype=x.dtype)
        rest = None if residual is None else residual.contiguous()
        _core.linear(self._pool, packed, flat, out, bias=bias, residual=rest, activation=activation)
        return out

    def _weights(
        self,
        kind: str,
        weights: Sequence[Tensor],
        matrix: Callable[[], Tensor],
        widths: Sequence[int],
        gated: bool = False,
    ) -> "_core.PackedWeights":
        """Packed once; `matrix` gives the weights as [N, K]."""
        key = (kind, *map(id, weights), *widths)
        found = self._packed.get(key)
        if found is None:
            dtype = str(weights[0].dtype).removeprefix("torch.")
            found = _core.PackedWeights(matrix().float().contiguous(), widths, dtype, gated=gated)
            self._packed[key] = found
            for weight in weights:
                weakref.finalize(weight, self._packed.pop, key, None)
        return found

    def _float(self, *vectors: Tensor) -> Tensor:
        """The vectors joined, in float32, made once."""
        if len(vectors) == 1 and vectors[0].dtype == torch.float32:
            return vectors[0]
        key = tuple(map(id, vectors))
        found = self._floats.get(key)
        if found is None:
            found = self._floats[key] = torch.cat(vectors).float()
            for vector in vectors:
                weakref.finalize(vector, self._floats.pop, key, None)
        return found


def _serves(weight: Tensor, widths: Sequence[int]) -> bool:
    """The products take bfloat16 in pairs."""
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and all(w % 2 == 0 for w in widths))


def _last(image: Tensor) -> Tensor:
    """[R, h, w, C] of an image [R, C, h, w], which is free where its channels are last already."""
    return image.permute(0, 2, 3, 1).contiguous()
