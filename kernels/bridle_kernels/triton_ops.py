"""The vocabulary of the networks over cuDNN, cuBLAS and Triton kernels: images are kept with their channels last."""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels.activation.reference import Activation
from bridle_kernels.attention import Segment, fused, gpu, reference, wide
from bridle_kernels.attention.launch import WIDEST
from bridle_kernels.conv2d.reference import finished
from bridle_kernels.geglu import triton as geglu_kernels
from bridle_kernels.group_norm import triton as group_norm_kernels
from bridle_kernels.layer_norm import triton as layer_norm_kernels
from bridle_kernels.ops import Pair, ReferenceOps
from bridle_kernels.resample import triton as resample_kernels
from bridle_kernels.residual_add import ResidualTerm
from bridle_kernels.residual_add import triton as residual_kernels


class TritonOps(ReferenceOps):
    """`Ops` on GPU tensors of float32, float16 or bfloat16; on CPU tensors in Triton's interpreter.

    Products and convolutions are PyTorch's. What has no kernel the reference computes, and what needs a gradient, except
    attention.
    """

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
        if upsample is not None and isinstance(x, Tensor) and _serves(x) and resample_kernels.serves(x, upsample):
            x, upsample = resample_kernels.upsample(_last(x), upsample).permute(0, 3, 1, 2), None
        if isinstance(x, tuple) and upsample is None and _is_product(weight, stride, padding):
            return finished(_added_products(x, weight, bias), shift, residual, activation)
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

    def geglu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `Ops.geglu`."""
        if not _serves(x):
            return ReferenceOps.geglu(x, weight, bias)
        product = ReferenceOps.linear(x, weight, bias)
        return geglu_kernels.gated(product.reshape(-1, product.shape[-1])).view(*x.shape[:-1], -1)

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
        sources = x if isinstance(x, tuple) else (x,)
        if not all(_serves(source) for source in sources) or activation not in (None, "silu"):
            return ReferenceOps.group_norm(x, weight, bias, groups, eps, activation=activation, affine=affine)
        rows, _, height, width = sources[0].shape
        scale, shift = affine if affine is not None else (None, None)
        out = group_norm_kernels.group_norm(
            tuple(_last(source).flatten(1, 2) for source in sources),
            weight,
            bias,
            groups,
            eps,
            silu=activation == "silu",
            scale=None if scale is None else scale.contiguous(),
            shift=None if shift is None else shift.contiguous(),
        )
        return out.view(rows, height, width, -1).permute(0, 3, 1, 2)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See `Ops.layer_norm`."""
        if not _serves(x):
            return ReferenceOps.layer_norm(x, weight, bias, eps)
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        return layer_norm_kernels.layer_norm(flat, weight, bias, eps).view(x.shape)

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
        if gate is None and out is None and not float32_scores and _is_plain(segments):
            piece, factor = segments[0].pieces[0], q.shape[3] ** -0.5 if scale is None else scale
            if fused.serves(q):
                return fused.attention(q, piece.k, piece.v, factor, causal)
            if q.shape[3] > WIDEST:
                return wide.attention(q, piece.k, piece.v, factor, causal)
        serve = gpu.attention if gpu.refusal(q, segments, out) is None else reference.attention
        return serve(q, segments, scale=scale, causal=causal, float32_scores=float32_scores, gate=gate, out=out)

    def residual_add(self, x: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor:
        """See `Ops.residual_add`."""
        if not _serves(x) or not residual_kernels.serves(residuals):
            return ReferenceOps.residual_add(x, residuals)
        return residual_kernels.residual_add(_last(x), residuals).permute(0, 3, 1, 2)

    def skip_connection(self, x: Tensor, skip: Tensor, residuals: Sequence[ResidualTerm]) -> Tensor | Pair:
        """See `Ops.skip_connection`. With residuals they are concatenated by the kernel that adds them."""
        if not residuals or not (_serves(x) and _serves(skip)) or not residual_kernels.serves(residuals):
            return super().skip_connection(x, skip, residuals)
        return residual_kernels.concatenated(_last(x), _last(skip), residuals).permute(0, 3, 1, 2)

    def rows(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """See `Ops.rows`. The indices are copied to the GPU once."""
        return x.index_select(0, _index(tuple(rows), x.device))


@cache
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept for good: a captured graph reads it by its address."""
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _serves(x: Tensor) -> bool:
    return x.dtype in gpu.DTYPES and not (torch.is_grad_enabled() and x.requires_grad)


def _is_product(weight: Tensor, stride: int, padding: int | tuple[int, int, int, int]) -> bool:
    """Whether a convolution is a matrix product over the pixels."""
    return weight.shape[2:] == (1, 1) and stride == 1 and padding in (0, (0, 0, 0, 0))


def _added_products(pair: Pair, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 1x1 convolution of two images as if concatenated: one product, and another that is added to it. Nothing is copied."""
    first, second = (_last(image) for image in pair)
    matrix, split = weight.flatten(1), first.shape[-1]
    out = F.linear(first.flatten(0, 2), matrix[:, :split], bias)
    out.addmm_(second.flatten(0, 2), matrix[:, split:].T)
    return out.view(*first.shape[:-1], -1).permute(0, 3, 1, 2)


def _is_plain(segments: Sequence[Segment]) -> bool:
    """Whether it is one piece of keys and values without any other field."""
    segment = segments[0]
    fields = (segment.k_rows, segment.v_rows, segment.q_rows, segment.bias, segment.v_mix, segment.pieces[0].length)
    weighted = isinstance(segment.weight, Tensor) or segment.weight != 1.0
    if len(segments) > 1 or len(segment.pieces) > 1 or segment.reads_map or weighted:
        return False
    return all(field is None for field in fields)


def _last(image: Tensor) -> Tensor:
    """[R, h, w, C] of an image [R, C, h, w], which is free where its channels are last already."""
    return image.permute(0, 2, 3, 1).contiguous()
