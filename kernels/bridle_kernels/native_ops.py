"""The vocabulary of the networks over the C++ core: images are kept with their channels last, so that tokens are free."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from bridle_kernels.activation import Activation
from bridle_kernels.attention import Segment
from bridle_kernels.attention.native import DTYPES
from bridle_kernels.executor import Executor
from bridle_kernels.native_layout import NativeLayout
from bridle_kernels.ops import Pair, ReferenceOps
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.residual_add import ResidualTerm
from bridle_kernels.spans import span

_NORM_ACTIVATIONS = (None, "silu")


class NativeOps(NativeLayout):
    """`Ops` on tensors of float32 or bfloat16. What the core has no kernel for, the reference computes.

    executor: runs the kernels or records them. weights: may be shared between several of these.
    """

    def __init__(self, executor: Executor, weights: PackedWeights) -> None:
        super().__init__(executor)
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
        if weight.dtype not in DTYPES:
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
        channels = [source.shape[1] for source in sources]
        images = [self._spans(self._last(source)) for source in sources]
        added = None if residual is None else self._last(residual.expand(rows, outputs, *size)).view(-1, outputs)
        epilogue = {
            "bias": None if bias is None else self._weights.vector(bias),
            "shift": None if shift is None else self._table(shift),
            "residual": added,
            "activation": activation or "",
        }
        if _has_phases(weight, sources[0], stride, sides, upsample) and self._weights.rounds_sums_once(weight):
            self._executor.upsampled_conv2d(self._weights.phases(weight, channels), images, out, **epilogue)
        else:
            self._executor.conv2d(
                self._weights.matrix([weight], channels * (height * width)),
                images,
                out,
                kernel=[height, width],
                stride=stride,
                padding=sides,
                upsample=upsample or (),
                **epilogue,
            )
        return out.view(rows, *size, outputs).permute(0, 3, 1, 2)

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
        if weight.dtype not in DTYPES:
            return ReferenceOps.linear(x, weight, bias, residual=residual, activation=activation)
        shape = (*x.shape[:-1], weight.shape[0])
        flat = None if residual is None else self._dense(residual.expand(shape)).view(-1, weight.shape[0])
        offset = None if bias is None else self._weights.vector(bias)
        return self._product([weight], x, offset, flat, activation).view(shape)

    def project_heads(
        self, x: Tensor, weights: Sequence[Tensor], heads: int, biases: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """See `Ops.project_heads`: one product for all of the weights."""
        if weights[0].dtype not in DTYPES:
            return ReferenceOps.project_heads(x, weights, heads, biases)
        widths = [weight.shape[0] for weight in weights]
        bias = None if biases is None else self._weights.vector(*biases)
        out = self._product(weights, x, bias)
        ends = list(accumulate(widths))
        parts = [out[:, end - width : end] for end, width in zip(ends, widths, strict=True)]
        return tuple(part.view(*x.shape[:-1], heads, -1) for part in parts)

    def geglu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Ops.geglu`."""
        if weight.dtype not in DTYPES:
            return ReferenceOps.geglu(x, weight, bias)
        return self._product([weight], x, self._weights.vector(bias), gated=True).view(*x.shape[:-1], -1)

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
        if weight.dtype not in DTYPES:
            return ReferenceOps.group_norm(x, weight, bias, groups, eps, activation=activation, affine=affine)
        sources = x if isinstance(x, tuple) else (x,)
        rows, _, height, width = sources[0].shape
        channels = weight.shape[0]
        out = self._executor.empty(rows, height * width, channels, dtype=weight.dtype)
        scale, shift = affine if affine is not None else (None, None)
        fused = activation if activation in _NORM_ACTIVATIONS else None
        self._executor.group_norm(
            [self._last(source).view(rows, height * width, -1) for source in sources],
            out,
            self._weights.vector(weight),
            self._weights.vector(bias),
            groups=groups,
            eps=eps,
            scale=None if scale is None else scale.float().contiguous(),
            shift=None if shift is None else shift.float().contiguous(),
            activation=fused or "",
        )
        image = out.view(rows, height, width, channels).permute(0, 3, 1, 2)
        return image if activation == fused else self._pointwise(image, activation=activation)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See `Ops.layer_norm`."""
        if weight.dtype not in DTYPES:
            return ReferenceOps.layer_norm(x, weight, bias, eps)
        flat = self._dense(x).view(-1, x.shape[-1])
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
        return self._executor.residual_add(self._last(x), residuals).permute(0, 3, 1, 2)

    def image(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """See `Ops.image`: a view."""
        return self._dense(x).view(x.shape[0], *size, x.shape[2]).permute(0, 3, 1, 2)

    def _product(
        self,
        weights: Sequence[Tensor],
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
        activation: Activation | None = None,
        gated: bool = False,
    ) -> Tensor:
        """[m, N] of x [..., K]: all weights in one product, or values times their gates."""
        flat = self._spans(self._dense(x).view(-1, x.shape[-1]))
        outputs = sum(weight.shape[0] for weight in weights) // (2 if gated else 1)
        out = self._executor.empty(flat.shape[0], outputs, dtype=x.dtype)
        packed = self._weights.matrix(weights, [x.shape[-1]], gated=gated)
        self._executor.linear(packed, flat, out, bias=bias, residual=residual, activation=activation or "")
        return out

    def _spans(self, x: Tensor) -> Tensor:
        """x [..., C] as products read it: bfloat16 in pairs, so a column of zeros follows an odd one."""
        width = span(x.dtype, x.shape[-1])
        if width == x.shape[-1]:
            return x
        out = self._executor.empty(*x.shape[:-1], width, dtype=x.dtype)
        self._executor.copy(x, out[..., :-1])
        self._executor.copy(torch.zeros(1, dtype=x.dtype).expand(*x.shape[:-1], 1), out[..., -1:])
        return out

    def _table(self, shift: Tensor) -> Tensor:
        """In float32, every row's channels one after another; rows may lie apart."""
        shift = shift.float()
        return shift if shift.stride(1) == 1 else self._dense(shift)


def _has_phases(
    weight: Tensor, x: Tensor, stride: int, padding: Sequence[int], upsample: tuple[int, int] | None
) -> bool:
    """Whether a convolution of x [R, C, h, w] is the four of `phases.py`."""
    doubled = upsample == (2 * x.shape[2], 2 * x.shape[3])
    three = weight.shape[2:] == (3, 3) and stride == 1 and list(padding) == [1] * 4
    return doubled and three
