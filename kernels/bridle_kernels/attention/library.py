"""`torch.ops.bridle.attention`: the op as one opaque, functional node of a traced or compiled program.

It returns the output [R, N, H*d] and then, per segment, the column masses, the log-sum-exp and the captured columns that
are asked for (see `flat`). Its gradient computes the forward again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bridle_kernels.attention import reference
from bridle_kernels.attention.capture import add_columns
from bridle_kernels.attention.flat import Flat, Reader, reports
from bridle_kernels.attention.segment import Segment


@torch.library.custom_op("bridle::attention", mutates_args=())
def attention_op(
    q: Tensor,
    tensors: Sequence[Tensor],
    layout: Sequence[int],
    scalars: Sequence[float],
    scale: float,
    causal: bool,
    float32_scores: bool,
) -> list[Tensor]:
    """See the module."""
    return _run(q, tensors, layout, scalars, scale, causal, float32_scores)


def _run(
    q: Tensor,
    tensors: Sequence[Tensor],
    layout: Sequence[int],
    scalars: Sequence[float],
    scale: float,
    causal: bool,
    float32_scores: bool,
) -> list[Tensor]:
    segments = Reader(q, tensors, layout, scalars).segments()
    out = reference.attention(q, segments, scale=scale, causal=causal, float32_scores=float32_scores)
    return [out, *reports(segments)]


@attention_op.register_fake
def _fake(
    q: Tensor, tensors: Sequence[Tensor], layout: Sequence[int], scalars: Sequence[float], *_: object
) -> list[Tensor]:
    rows, queries, heads, dim = q.shape
    return [q.new_empty(rows, queries, heads * dim), *reports(Reader(q, tensors, layout, scalars).segments())]


@torch.library.custom_op("bridle::attention_backward", mutates_args=())
def attention_backward_op(
    grads: Sequence[Tensor],
    q: Tensor,
    tensors: Sequence[Tensor],
    wanted: Sequence[int],
    layout: Sequence[int],
    scalars: Sequence[float],
    scale: float,
    causal: bool,
    float32_scores: bool,
) -> list[Tensor]:
    """Gradients of q and of tensors[i] for i in `wanted`, from those of what `bridle::attention` returns."""

    def forward(q: Tensor, *chosen: Tensor) -> list[Tensor]:
        given = list(tensors)
        for i, tensor in zip(wanted, chosen, strict=True):
            given[i] = tensor
        return _run(q, given, layout, scalars, scale, causal, float32_scores)

    # An operator's body runs below autograd; a function transform differentiates there.
    pull_back = torch.func.vjp(forward, q, *(tensors[i] for i in wanted))[1]
    return [grad.clone(memory_format=torch.contiguous_format) for grad in pull_back(list(grads))]


@attention_backward_op.register_fake
def _fake_backward(
    grads: Sequence[Tensor], q: Tensor, tensors: Sequence[Tensor], wanted: Sequence[int], *_: object
) -> list[Tensor]:
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (q, *(tensors[i] for i in wanted))
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    q, tensors, *ctx.rest = inputs
    ctx.wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
    ctx.save_for_backward(q, *tensors)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    q, *tensors = ctx.saved_tensors
    grad_q, *found = attention_backward_op(grads, q, tensors, ctx.wanted, *ctx.rest)
    by_index = dict(zip(ctx.wanted, found, strict=True))
    return grad_q, [by_index.get(i) for i in range(len(tensors))], *[None] * len(ctx.rest)


attention_op.register_autograd(_backward, setup_context=_save)


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
    """`bridle_kernels.attention` through the operator."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    flat = Flat.of(segments)
    total, *found = attention_op(q, flat.tensors, flat.layout, flat.scalars, scale, causal, float32_scores)
    _hand_out(segments, iter(found))
    return reference.deliver(total.unflatten(2, q.shape[2:]), q.dtype, gate, out)


def _hand_out(segments: Sequence[Segment], found: Any) -> None:
    """Puts what the operator returned into the buffers of the segments."""
    for segment in segments:
        if segment.mass is not None:
            masses = next(found)
            if segment.mass.out is not None:
                segment.mass.out.copy_(masses)
        if segment.lse is not None:
            segment.lse.copy_(next(found))
        for capture in segment.captures:
            columns = next(found)
            add_columns(capture, columns, torch.arange(columns.shape[0], device=columns.device))
