"""Element types of ONNX tensors (TensorProto.DataType of onnx.proto)."""

from collections.abc import Mapping

import torch

NAMES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}
"""Those that a graph may use; strings, complex numbers and types of less than a byte are not among them."""

WIDTHS: Mapping[str, int] = {
    "float32": 4,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
    "float16": 2,
    "float64": 8,
    "uint32": 4,
    "uint64": 8,
    "bfloat16": 2,
}
"""Bytes of an element."""

CODES: Mapping[str, int] = {name: code for code, name in NAMES.items()}

TORCH: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
"""Those that inputs and outputs may have."""
