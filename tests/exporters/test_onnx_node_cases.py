"""ONNX's own node tests of what the exporter relies on: Attention, GroupNormalization, Resize and Conv.

Each case runs under ONNX Runtime and through our reference function.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx.backend.test.case import node as node_cases
from torch import Tensor

from bridle_kernels.attention import Piece, Segment, attention
from bridle_kernels.conv2d import conv2d
from bridle_kernels.group_norm import group_norm

CASES = {
    "Attention": (
        *("test_attention_3d", "test_attention_3d_scaled", "test_attention_3d_causal", "test_attention_3d_attn_mask"),
        *("test_attention_4d", "test_attention_4d_scaled", "test_attention_4d_causal", "test_attention_4d_attn_mask"),
        *("test_attention_4d_attn_mask_3d", "test_attention_4d_attn_mask_4d"),
    ),
    "GroupNormalization": ("test_group_normalization_example", "test_group_normalization_epsilon"),
    "Resize": ("test_resize_upsample_sizes_nearest", "test_resize_upsample_sizes_nearest_axes_2_3"),
    "Conv": (
        *("test_basic_conv_with_padding", "test_basic_conv_without_padding", "test_conv_with_strides_padding"),
        *("test_conv_with_strides_no_padding", "test_conv_with_strides_and_asymmetric_padding"),
    ),
}
NAMES = [name for names in CASES.values() for name in names]


@lru_cache(maxsize=1)
def cases() -> dict[str, Any]:
    with np.errstate(all="ignore"):
        return {case.name: case for case in node_cases.collect_testcases("")}


def attend(options: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    flat = q.ndim == 3
    if flat:
        q, k, v = (x.unflatten(2, (options["q_num_heads"], -1)) for x in (q, k, v))
    else:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    bias = None if mask is None else mask[(None,) * (4 - mask.ndim)]
    scale, causal = options.get("scale"), bool(options.get("is_causal", 0))
    out = attention(q, (Segment((Piece(k, v),), bias=bias),), scale=scale, causal=causal)
    return out if flat else out.unflatten(2, (q.shape[2], -1)).transpose(1, 2)


def convolve(options: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    top, left, bottom, right = options["pads"]
    return conv2d(x, weight, stride=options.get("strides", [1])[0], padding=(left, right, top, bottom))


def normalise(options: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return group_norm(x, weight, bias, options["num_groups"], options.get("epsilon", 1e-5))


def resize(options: dict[str, Any], x: Tensor, size: Tensor) -> Tensor:
    height, width = size[-2:].tolist()
    return conv2d(x, torch.ones(1, 1, 1, 1), padding=0, upsample=(height, width))


OURS: dict[str, Callable[..., Tensor]] = {
    "Attention": attend,
    "Conv": convolve,
    "GroupNormalization": normalise,
    "Resize": resize,
}


@pytest.mark.parametrize("name", NAMES)
def test_node_case(name: str) -> None:
    case = cases()[name]
    (node,) = case.model.graph.node
    inputs, (wanted,) = case.data_sets[0]
    case.model.opset_import[0].version = min(case.model.opset_import[0].version, 24)
    session = onnxruntime.InferenceSession(case.model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {i.name: array for i, array in zip(session.get_inputs(), inputs, strict=True)}
    (found,) = session.run(None, feeds)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    ours = OURS[node.op_type](options, *(torch.from_numpy(np.array(array)) for array in inputs))
    np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_every_op_has_cases() -> None:
    assert set(CASES) == set(OURS)
    for op, names in CASES.items():
        assert {cases()[name].model.graph.node[0].op_type for name in names} == {op}
