"""Graphs for one provider, derived from the base graph by steps that the manifest records. Weights are shared.

cpu, cuda: `Attention` becomes com.microsoft.MultiHeadAttention, which both have fused kernels for.
tensorrt: `Attention` becomes products and a softmax, which TensorRT fuses itself.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

STEPS: dict[str, list[str]] = {
    "cpu": ["Attention -> com.microsoft.MultiHeadAttention"],
    "cuda": ["Attention -> com.microsoft.MultiHeadAttention"],
    "tensorrt": ["Attention -> MatMul, Softmax, MatMul"],
}
_MICROSOFT = "com.microsoft"
Rewrite = Callable[[Any, dict[str, Any]], Iterator[Any]]


def write(folder: Path, name: str) -> dict[str, str]:
    """Writes NAME.PROVIDER.onnx for the base graph NAME.onnx where a step changes it: provider -> file to load."""
    base = folder / f"{name}.onnx"
    if not any(node.op_type == "Attention" for node in _graph(base).graph.node):
        return dict.fromkeys(STEPS, base.name)
    files = {}
    for provider in STEPS:
        model = _graph(base)
        _rewrite(model, _decomposed if provider == "tensorrt" else _multi_head)
        path = folder / f"{name}.{provider}.onnx"
        path.write_bytes(model.SerializeToString())
        files[provider] = path.name
    return files


def _graph(path: Path) -> Any:
    """A model of its own, without weights."""
    return onnx.load(str(path), load_external_data=False)


def _rewrite(model: Any, rewrite: Rewrite) -> None:
    constants: dict[str, Any] = {}
    nodes: list[Any] = []
    for node in model.graph.node:
        nodes.extend(rewrite(node, constants) if node.op_type == "Attention" else [node])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants.values())
    if any(node.domain == _MICROSOFT for node in nodes):
        model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))


def _multi_head(node: Any, constants: dict[str, Any]) -> Iterator[Any]:
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    options = {"scale": found["scale"]} if "scale" in found else {}
    yield helper.make_node(
        "MultiHeadAttention",
        list(node.input),
        list(node.output),
        name=node.name,
        domain=_MICROSOFT,
        num_heads=found["q_num_heads"],
        unidirectional=found.get("is_causal", 0),
        **options,
    )


def _decomposed(node: Any, constants: dict[str, Any]) -> Iterator[Any]:
    """softmax(q.K / sqrt(d)) V, with the lower triangle alone where it is causal."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    (out,) = node.output
    q, k, v = (f"{out}.{part}" for part in ("q", "k", "v"))
    split = _constant(constants, "split", np.array([0, 0, found["q_num_heads"], -1]))
    merge = _constant(constants, "merge", np.array([0, 0, -1]))
    for source, name, order in zip(node.input, (q, k, v), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True):
        yield helper.make_node("Reshape", [source, split], [f"{name}.split"])
        yield helper.make_node("Transpose", [f"{name}.split"], [name], perm=order)
    yield helper.make_node("Shape", [q], [f"{q}.dim"], start=3)
    yield helper.make_node("CastLike", [f"{q}.dim", q], [f"{q}.width"])
    yield helper.make_node("Sqrt", [f"{q}.width"], [f"{q}.root"])
    yield helper.make_node("Div", [q, f"{q}.root"], [f"{q}.scaled"])
    yield helper.make_node("MatMul", [f"{q}.scaled", k], [f"{out}.scores"])
    scores = f"{out}.scores"
    if found.get("is_causal", 0):
        yield from _causal(out, scores, constants)
        scores = f"{out}.causal"
    yield helper.make_node("Softmax", [scores], [f"{out}.map"], axis=-1)
    yield helper.make_node("MatMul", [f"{out}.map", v], [f"{out}.heads"])
    yield helper.make_node("Transpose", [f"{out}.heads"], [f"{out}.tokens"], perm=[0, 2, 1, 3])
    yield helper.make_node("Reshape", [f"{out}.tokens", merge], [out], name=node.name)


def _causal(out: str, scores: str, constants: dict[str, Any]) -> Iterator[Any]:
    one = _constant(constants, "one", np.array(1))
    low = _constant(constants, "low", np.array(-1e4, np.float32))
    yield helper.make_node("Shape", [scores], [f"{out}.square"], start=2)
    yield helper.make_node("Expand", [low, f"{out}.square"], [f"{out}.low"])
    yield helper.make_node("Trilu", [f"{out}.low", one], [f"{out}.above"], upper=1)
    yield helper.make_node("CastLike", [f"{out}.above", scores], [f"{out}.mask"])
    yield helper.make_node("Add", [scores, f"{out}.mask"], [f"{out}.causal"])


def _constant(constants: dict[str, Any], name: str, values: Any) -> str:
    key = f"variant.{name}.{values.tolist()}"
    constants[key] = numpy_helper.from_array(values, key)
    return key
