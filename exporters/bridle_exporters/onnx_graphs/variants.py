"""Graphs for one provider, derived from the base graph by steps that the manifest records. Weights are shared.

cpu: `Attention` becomes com.microsoft.MultiHeadAttention, which has a fused kernel.
cuda: the same, in an older operator set. ONNX Runtime runs a node on the CPU where the CUDA provider has the kernel of an
earlier version of the operator alone; in set 23 that is so for InstanceNormalization, ReduceMax, Equal, Sin and Cos.
tensorrt: `Attention` becomes products and a softmax, which TensorRT fuses itself.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

STEPS: dict[str, list[str]] = {
    "cpu": ["Attention -> com.microsoft.MultiHeadAttention"],
    "cuda": ["Attention -> com.microsoft.MultiHeadAttention", "Gelu -> com.microsoft.Gelu", "operator set 18"],
    "tensorrt": ["Attention -> MatMul, Softmax, MatMul"],
}
_CUDA_OPSET = 18
"""The newest one in which the CUDA provider has every operator of the graphs, but for Gelu, which came with 20."""
_MICROSOFT = "com.microsoft"
Rewrite = Callable[[Any, dict[str, Any]], Iterator[Any]]


def write(folder: Path, name: str) -> dict[str, str]:
    """Writes NAME.PROVIDER.onnx for the base graph NAME.onnx where it has attention: provider -> file to load."""
    base = folder / f"{name}.onnx"
    if not any(node.op_type == "Attention" for node in _graph(base).graph.node):
        return dict.fromkeys(STEPS, base.name)
    files = {provider: f"{name}.{provider}.onnx" for provider in STEPS}
    for provider, file in files.items():
        model = _graph(base)
        _rewrite(model, _REWRITES[provider])
        if provider == "cuda":
            model.opset_import[0].version = _CUDA_OPSET
        (folder / file).write_bytes(model.SerializeToString())
    return files


def _graph(path: Path) -> Any:
    """A model of its own, without weights."""
    return onnx.load(str(path), load_external_data=False)


def _rewrite(model: Any, rewrites: Mapping[str, Rewrite]) -> None:
    """rewrites: by operator."""
    constants: dict[str, Any] = {}
    nodes: list[Any] = []
    for node in model.graph.node:
        nodes.extend(rewrites[node.op_type](node, constants) if node.op_type in rewrites else [node])
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


def _microsoft_gelu(node: Any, constants: dict[str, Any]) -> Iterator[Any]:
    yield helper.make_node("Gelu", list(node.input), list(node.output), name=node.name, domain=_MICROSOFT)


def _decomposed(node: Any, constants: dict[str, Any]) -> Iterator[Any]:
    """softmax(scale * q.K) V, scale 1 / sqrt(d) unless one is given, with the lower triangle alone where it is causal."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    (out,) = node.output
    q, k, v = (f"{out}.{part}" for part in ("q", "k", "v"))
    split = _constant(constants, "split", np.array([0, 0, found["q_num_heads"], -1]))
    merge = _constant(constants, "merge", np.array([0, 0, -1]))
    for source, name, order in zip(node.input, (q, k, v), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True):
        yield helper.make_node("Reshape", [source, split], [f"{name}.split"])
        yield helper.make_node("Transpose", [f"{name}.split"], [name], perm=order)
    if "scale" in found:
        scale = _constant(constants, "scale", np.array(found["scale"], np.float32))
        yield helper.make_node("CastLike", [scale, q], [f"{q}.scale"])
        yield helper.make_node("Mul", [q, f"{q}.scale"], [f"{q}.scaled"])
    else:
        yield from _divided_by_root(q)
    yield helper.make_node("MatMul", [f"{q}.scaled", k], [f"{out}.scores"])
    scores = f"{out}.scores"
    if found.get("is_causal", 0):
        yield from _causal(out, scores, constants)
        scores = f"{out}.causal"
    yield helper.make_node("Softmax", [scores], [f"{out}.map"], axis=-1)
    yield helper.make_node("MatMul", [f"{out}.map", v], [f"{out}.heads"])
    yield helper.make_node("Transpose", [f"{out}.heads"], [f"{out}.tokens"], perm=[0, 2, 1, 3])
    yield helper.make_node("Reshape", [f"{out}.tokens", merge], [out], name=node.name)


def _divided_by_root(q: str) -> Iterator[Any]:
    """q / sqrt(d) as Q.scaled."""
    yield helper.make_node("Shape", [q], [f"{q}.dim"], start=3)
    yield helper.make_node("CastLike", [f"{q}.dim", q], [f"{q}.width"])
    yield helper.make_node("Sqrt", [f"{q}.width"], [f"{q}.root"])
    yield helper.make_node("Div", [q, f"{q}.root"], [f"{q}.scaled"])


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


_REWRITES: Mapping[str, Mapping[str, Rewrite]] = {
    "cpu": {"Attention": _multi_head},
    "cuda": {"Attention": _multi_head, "Gelu": _microsoft_gelu},
    "tensorrt": {"Attention": _decomposed},
}
