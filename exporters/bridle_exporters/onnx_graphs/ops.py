"""`Ops` that writes ONNX nodes of the standard operator set. Values are of `graph.Value`, weights are PyTorch tensors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from bridle.errors import UnsupportedError
from bridle_exporters.onnx_graphs.attention import attention
from bridle_exporters.onnx_graphs.graph import Graph, Repeat, Value
from bridle_kernels.activation import Activation
from bridle_kernels.time_embedding.reference import frequencies

Pair = tuple[Value, Value]


class OnnxOps:
    """See `bridle_kernels.ops.Ops` for what every method computes. Floating point values have the graph's dtype."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._op = graph.op

    def conv2d(
        self,
        x: Value | Pair,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: int = 1,
        padding: int | tuple[int, int, int, int] = 1,
        upsample: tuple[Any, Any] | None = None,
        shift: Value | None = None,
        residual: Value | Tensor | None = None,
        activation: Activation | None = None,
    ) -> Value:
        left, right, top, bottom = padding if isinstance(padding, tuple) else (padding,) * 4
        image = self._joined(x) if upsample is None else self._enlarged(self._joined(x), upsample)
        operands = [self._graph.weight(tensor) for tensor in (weight, bias) if tensor is not None]
        kernel = list(weight.shape[2:])
        pads = [top, left, bottom, right]
        out = self._op("Conv", image, *operands, kernel_shape=kernel, strides=[stride, stride], pads=pads)
        if shift is not None:
            out = self._op("Add", out, self._op("Unsqueeze", shift, self._graph.constant([2, 3])))
        return self._finished(out, residual, activation)

    def linear(
        self,
        x: Value,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        residual: Value | None = None,
        activation: Activation | None = None,
    ) -> Value:
        return self._finished(self._product(x, weight, bias), residual, activation)

    def project_heads(
        self, x: Value, weights: Sequence[Tensor], heads: int, biases: Sequence[Tensor] | None = None
    ) -> tuple[Value, ...]:
        offsets: Sequence[Tensor | None] = biases if biases is not None else [None] * len(weights)
        return tuple(
            replace(self._product(x, weight, bias), heads=heads, width=weight.shape[0])
            for weight, bias in zip(weights, offsets, strict=True)
        )

    def geglu(self, x: Value, weight: Tensor, bias: Tensor) -> Value:
        value, gate = self._graph.ops("Split", 2, self._product(x, weight, bias), axis=-1, num_outputs=2)
        return self._op("Mul", value, self._op("Gelu", gate))

    def group_norm(
        self,
        x: Value | Pair,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        *,
        activation: Activation | None = None,
        affine: tuple[Value, Value | None] | None = None,
    ) -> Value:
        # InstanceNormalization over [R, groups, rest]: every provider has a kernel for it.
        image = self._joined(x)
        grouped = self._op("Reshape", image, self._graph.constant([0, groups, -1]))
        normed = self._op("Reshape", self._normalised(grouped, groups, eps), self._op("Shape", image))
        out = self._op("Mul", normed, self._graph.weight(weight, per_channel=True))
        out = self._op("Add", out, self._graph.weight(bias, per_channel=True))
        if affine is not None:
            scale, shift = (
                None if a is None else self._op("Unsqueeze", a, self._graph.constant([2, 3])) for a in affine
            )
            assert scale is not None
            out = self._op("Mul", out, self._op("Add", scale, self._graph.constant(1.0)))
            out = out if shift is None else self._op("Add", out, shift)
        return self._finished(out, None, activation)

    def layer_norm(self, x: Value, weight: Tensor, bias: Tensor, eps: float) -> Value:
        return self._op(
            "LayerNormalization", x, self._graph.weight(weight), self._graph.weight(bias), axis=-1, epsilon=eps
        )

    def attention(
        self,
        q: Value,
        segments: Sequence[Any],
        *,
        scale: float | None = None,
        causal: bool = False,
        float32_scores: bool = False,
    ) -> Value:
        return attention(self._graph, q, segments, scale, causal, float32_scores)

    def residual_add(self, x: Value, residuals: Sequence[Any]) -> Value:
        for residual in residuals:
            x = self._op("Add", x, residual.values)
        return x

    def skip_connection(self, x: Value, skip: Value, residuals: Sequence[Any]) -> Pair:
        return x, self.residual_add(skip, residuals)

    def time_embedding(
        self, t: Value, dim: int, *, flip_sin_to_cos: bool, freq_shift: int, dtype: torch.dtype
    ) -> Value:
        table = self._graph.table(f"frequencies.{dim}.{freq_shift}", frequencies(dim, freq_shift))
        angles = self._op("Mul", self._op("Unsqueeze", t, self._graph.constant([-1])), table)
        parts = [self._op("Cos", angles), self._op("Sin", angles)]
        if not flip_sin_to_cos:
            parts.reverse()
        if dim % 2:
            zeros = self._op("Slice", angles, *(self._graph.constant([n]) for n in (0, 1, -1)))
            parts.append(self._op("Mul", zeros, self._graph.constant(0.0, torch.float32)))
        flat = self._op("Flatten", self._op("Concat", *parts, axis=-1), axis=1)
        return flat if self._graph.dtype == torch.float32 else self._op("Cast", flat, to=TensorProto.FLOAT16)

    def average_pool(self, x: Value) -> Value:
        return self._op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=0)

    def spatial_mean(self, x: Value) -> Value:
        return self._op("ReduceMean", x, self._graph.constant([2, 3]), keepdims=1)

    def resize_mask(self, mask: Value, size: tuple[Any, Any]) -> Value:
        raise UnsupportedError(
            "a mask of any size", "onnx", "whoever feeds a graph multiplies its residuals with masks"
        )

    def pixel_unshuffle(self, x: Value, factor: int) -> Value:
        # SpaceToDepth numbers channels (dy, dx, c), the networks (c, dy, dx).
        blocks = self._op("SpaceToDepth", x, blocksize=factor)
        assert x.sizes is not None
        flat = self._op("Reshape", blocks, self._graph.constant([0, factor * factor, x.sizes[1], -1]))
        return self._op("Reshape", self._op("Transpose", flat, perm=[0, 2, 1, 3]), self._op("Shape", blocks))

    def activation(self, x: Value, kind: Activation) -> Value:
        match kind:
            case "silu":
                return self._op("Mul", x, self._op("Sigmoid", x))
            case "quick_gelu":
                return self._op("Mul", x, self._op("Sigmoid", self._op("Mul", x, self._graph.constant(1.702))))
            case "gelu":
                return self._op("Gelu", x)
            case "relu":
                return self._op("Relu", x)
            case "tanh":
                return self._op("Tanh", x)

    def scale_shift(self, x: Value, scale: float, shift: float) -> Value:
        scaled = self._op("Mul", x, self._graph.constant(float(scale)))
        return self._op("Add", scaled, self._graph.constant(float(shift))) if shift else scaled

    def embedding(self, token_ids: Value, tokens: Tensor, positions: Tensor) -> Value:
        length = self._op("Shape", token_ids, start=1, end=2)
        start, axis = self._graph.constant([0]), self._graph.constant([0])
        used = self._op("Slice", self._graph.weight(positions), start, length, axis)
        return self._op("Add", self._op("Gather", self._graph.weight(tokens), token_ids), used)

    def end_token(self, x: Value, token_ids: Value, eos_token_id: int | None) -> Value:
        scores = token_ids if eos_token_id is None else self._op("Equal", token_ids, self._graph.constant(eos_token_id))
        place = self._op("ArgMax", self._op("Cast", scores, to=TensorProto.INT32), axis=-1, keepdims=1)
        return self._op("GatherND", x, place, batch_dims=1)

    def tokens(self, x: Value) -> Value:
        flat = self._op("Reshape", x, self._graph.constant([0, 0, -1]))
        return self._op("Transpose", flat, perm=[0, 2, 1])

    def image(self, x: Value, size: tuple[Any, Any]) -> Value:
        channels_first = self._op("Transpose", x, perm=[0, 2, 1])
        return self._op("Reshape", channels_first, self._op("Concat", self._graph.constant([0, 0]), *size, axis=0))

    def concat(self, parts: Sequence[Value]) -> Value:
        return parts[0] if len(parts) == 1 else self._op("Concat", *parts, axis=1)

    def columns(self, x: Value, start: int, stop: int) -> Value:
        if x.sizes is not None and (start, stop) == (0, x.sizes[1]):
            return x
        return self._op("Slice", x, *(self._graph.constant([n]) for n in (start, stop, 1)))

    def rows(self, x: Tensor, rows: Repeat) -> Value:
        """A row of weights or ids for every row of the batch, which is all that the exported networks ask for."""
        row = self._graph.constant_value(x) if x.dtype == torch.int64 else self._graph.weight(x)
        rest = self._graph.constant(list(x.shape[1:]))
        return self._op("Expand", row, self._op("Concat", rows.count, rest, axis=0))

    def name_point(self, x: Value, name: str) -> Value:
        return x

    def _normalised(self, x: Value, groups: int, eps: float) -> Value:
        """In float32: squares of float16 overflow."""
        half = self._graph.dtype == torch.float16
        one, zero = (self._graph.constant([value] * groups, torch.float32) for value in (1.0, 0.0))
        wide = self._op("Cast", x, to=TensorProto.FLOAT) if half else x
        normed = self._op("InstanceNormalization", wide, one, zero, epsilon=eps)
        return self._op("Cast", normed, to=TensorProto.FLOAT16) if half else normed

    def _product(self, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
        out = self._op("MatMul", x, self._graph.weight(weight, transposed=True))
        return out if bias is None else self._op("Add", out, self._graph.weight(bias))

    def _enlarged(self, x: Value, size: tuple[Any, Any]) -> Value:
        channels = self._op("Shape", x, start=0, end=2)
        return self._op(
            "Resize",
            x,
            "",
            "",
            self._op("Concat", channels, *size, axis=0),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def _joined(self, x: Value | Pair) -> Value:
        return self._op("Concat", *x, axis=1) if isinstance(x, tuple) else x

    def _finished(self, out: Value, residual: Value | Tensor | None, kind: Activation | None) -> Value:
        if residual is not None:
            added = self._graph.weight(residual) if isinstance(residual, Tensor) else residual
            out = self._op("Add", out, added)
        return out if kind is None else self.activation(out, kind)
