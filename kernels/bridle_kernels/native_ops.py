"""The vocabulary of the networks over the C++ core: images are kept with their channels last, so that tokens are free."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.activation.reference import Activation, activate_in_place
from bridle_kernels.attention import Segment
from bridle_kernels.attention.native import DTYPES
from bridle_kernels.executor import Executor
from bridle_kernels.ops import Pair, ReferenceOps
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.residual_add import ResidualTerm

_NATIVE_ACTIVATIONS: dict[Activation | None, str] = {
    None: "",
    "silu": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
}
_NORM_ACTIVATIONS = (None, "silu")


class NativeOps(ReferenceOps):
    """`Ops` on tensors of float32 or bfloat16. What the core has no kernel for, the reference computes.

    executor: runs the kernels or records them. weights: may be shared between several of these.
    """

    def __init__(self, executor: Executor, weights: PackedWeights) -> None:
        self._executor = executor
        self._weights = weights

    def conv2d(
        self,
        x: Tensor | Pair,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int = 1,
        padding: int | tuple[int, int, int, int] = 1,
        upsample: tuple[int, int] | None = None,
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
                x,
                weight,
                bias,
                stride=stride,
                padding=padding,
                upsample=upsample,
                shift=shift,
                residual=residual,
                activation=activation,
            )
        sides = list(padding) if isinstance(padding, tuple) else [padding] * 4
        rows = sources[0].shape[0]
        h, w = sources[0].shape[2:] if upsample is None else upsample
        size = [(h + sides[2] + sides[3] - height) // stride + 1, (w + sides[0] + sides[1] - width) // stride + 1]
        out = self._executor.empty(rows * size[0] * size[1], outputs, dtype=weight.dtype)
        self._executor.conv2d(
            self._weights.matrix([weight], widths),
            [_last(source) for source in sources],
            out,
            kernel=[height, width],
            stride=stride,
            padding=sides,
            upsample=upsample or (),
            bias=None if bias is None else self._weights.vector(bias),
            shift=None if shift is None else _table(shift),
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
        packed = self._weights.matrix([weight], [inputs])
        out = self._product(
            packed,
            x,
            outputs,
            None if bias is None else self._weights.vector(bias),
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
        packed = self._weights.matrix(weights, [inputs])
        bias = None if biases is None else self._weights.vector(*biases)
        out = self._product(packed, x, sum(widths), bias)
        ends = list(accumulate(widths))
        parts = [out[:, end - width : end] for end, width in zip(ends, widths, strict=True)]
        return tuple(part.view(*x.shape[:-1], heads, -1) for part in parts)

    def geglu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Ops.geglu`."""
        outputs, inputs = weight.shape[0] // 2, weight.shape[1]
        if not _serves(weight, [inputs]):
            return ReferenceOps.geglu(x, weight, bias)
        packed = self._weights.matrix([weight], [inputs], gated=True)
        return self._product(packed, x, outputs, self._weights.vector(bias)).view(*x.shape[:-1], outputs)

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
        if weight.dtype not in DTYPES or activation not in _NORM_ACTIVATIONS:
            return ReferenceOps.group_norm(x, weight, bias, groups, eps, activation=activation, affine=affine)
        sources = x if isinstance(x, tuple) else (x,)
        rows, _, height, width = sources[0].shape
        channels = weight.shape[0]
        out = self._executor.empty(rows, height * width, channels, dtype=weight.dtype)
        scale, shift = affine if affine is not None else (None, None)
        self._executor.group_norm(
            [_last(source).view(rows, height * width, -1) for source in sources],
            out,
            self._weights.vector(weight),
            self._weights.vector(bias),
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
        out = self._executor.empty(*flat.shape, dtype=flat.dtype)
        self._executor.layer_norm(flat, out, self._weights.vector(weight), self._weights.vector(bias), eps=eps)
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
        return self._executor.attention(
            q, segments, gate, out, scale=scale, causal=causal, float32_scores=float32_scores
        )

    def residual_add(self, x: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor:
        """See `Ops.residual_add`."""
        if x.dtype not in DTYPES:
            return ReferenceOps.residual_add(x, residuals)
        return self._executor.residual_add(_last(x), residuals).permute(0, 3, 1, 2)

    def image(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """See `Ops.image`: a view."""
        return x.reshape(x.shape[0], *size, x.shape[2]).permute(0, 3, 1, 2)

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
        out = self._executor.empty(flat.shape[0], outputs, dtype=x.dtype)
        rest = None if residual is None else residual.contiguous()
        self._executor.linear(packed, flat, out, bias=bias, residual=rest, activation=activation)
        return out


def _serves(weight: Tensor, widths: Sequence[int]) -> bool:
    """The products take bfloat16 in pairs."""
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and all(w % 2 == 0 for w in widths))


def _last(image: Tensor) -> Tensor:
    """[R, h, w, C] of an image [R, C, h, w], which is free where its channels are last already."""
    return image.permute(0, 2, 3, 1).contiguous()


def _table(shift: Tensor) -> Tensor:
    """In float32, every row's channels one after another; rows may lie apart."""
    shift = shift.float()
    return shift if shift.stride(1) == 1 else shift.contiguous()
