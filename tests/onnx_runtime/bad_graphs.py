"""Small ONNX models with one thing wrong in each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

DATA = "model.onnx_data"
BYTES = 24
"""Of the weight `w`, [2, 3] float32."""

Change = Callable[[onnx.ModelProto], object]


def external_tensor(name: str = "w", dims: tuple[int, ...] = (2, 3), **entries: str) -> TensorProto:
    """A float32 weight in a file; entries replace or join the right ones."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": DATA, "offset": "0", "length": str(BYTES)} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def plain_model() -> onnx.ModelProto:
    """y = x @ w, with w in `model.onnx_data`."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [external_tensor()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def write(folder: Path, change: Change | None = None) -> Path:
    """The plain model with one change, and its weights. Returns the path of the graph."""
    model = plain_model()
    if change is not None:
        change(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATA).write_bytes(np.arange(6, dtype=np.float32).tobytes())
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def weight(**entries: str) -> Change:
    """The weight with other entries of `external_data`."""
    return lambda model: model.graph.initializer[0].CopyFrom(external_tensor(**entries))


def renamed_key(old: str, new: str) -> Change:
    """The weight with an entry under another name."""

    def change(model: onnx.ModelProto) -> None:
        next(entry for entry in model.graph.initializer[0].external_data if entry.key == old).key = new

    return change


def repeated_key(model: onnx.ModelProto) -> None:
    """Two locations."""
    model.graph.initializer[0].external_data.add(key="location", value="elsewhere")


def undeclared_location(model: onnx.ModelProto) -> None:
    """Entries of a file on a weight that says its values are inside the graph."""
    model.graph.initializer[0].data_location = TensorProto.DEFAULT


def constant_in_a_file(model: onnx.ModelProto) -> None:
    """A node's attribute whose values are in a file."""
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external_tensor("c")))


def weight_inside_branch(model: onnx.ModelProto) -> None:
    """A graph in an attribute with a weight in a file."""
    body = helper.make_graph([], "body", [], [], [external_tensor("inner")])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body))


def nested(depth: int) -> Change:
    """Graphs inside graphs, made from the bytes up: the library's own limit is lower."""

    def change(model: onnx.ModelProto) -> None:
        body = onnx.GraphProto(name="leaf")
        for _ in range(depth):
            body = helper.make_graph([helper.make_node("If", ["x"], ["z"], then_branch=body)], "body", [], [])
        model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body))

    return change


def node(op: str, domain: str) -> Change:
    """One more node."""
    return lambda model: model.graph.node.append(helper.make_node(op, ["x"], ["z"], domain=domain))


def imported(domain: str) -> Change:
    """One more opset."""
    return lambda model: model.opset_import.append(helper.make_opsetid(domain, 1))


def with_function(model: onnx.ModelProto) -> None:
    """A function of the model's own, which could stand for any op."""
    model.functions.append(onnx.FunctionProto(name="MatMul", domain=""))


def with_training(model: onnx.ModelProto) -> None:
    """Training information."""
    model.training_info.append(onnx.TrainingInfoProto())


def with_settings(model: onnx.ModelProto) -> None:
    """Settings that ONNX Runtime may take from a model."""
    model.metadata_props.add(key="ort_config", value='{"session_options": {}}')


def sparse_weight(model: onnx.ModelProto) -> None:
    """A sparse initializer."""
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(dims=[2, 3]))


def twice_the_same_weight(model: onnx.ModelProto) -> None:
    """Two weights of one name."""
    model.graph.initializer.append(external_tensor())


def string_weight(model: onnx.ModelProto) -> None:
    """A weight of strings."""
    model.graph.initializer.append(TensorProto(name="s", data_type=TensorProto.STRING, dims=[1], string_data=[b"a"]))


def short_inline_weight(model: onnx.ModelProto) -> None:
    """Fewer bytes than the shape says."""
    model.graph.initializer.append(
        TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[1000000], raw_data=bytes(4))
    )


def negative_dimension(model: onnx.ModelProto) -> None:
    """A weight of a negative size."""
    model.graph.initializer[0].dims[0] = -2


def overflowing_dimensions(model: onnx.ModelProto) -> None:
    """A weight whose number of elements does not fit 64 bits."""
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**33] * 4)


def sequence_input(model: onnx.ModelProto) -> None:
    """An input that is not a tensor."""
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.input.append(helper.make_value_info("s", kind))


def input_without_rank(model: onnx.ModelProto) -> None:
    """An input of any rank."""
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, None))


def twice_the_same_input(model: onnx.ModelProto) -> None:
    """Two inputs of one name."""
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]))


def without_graph(model: onnx.ModelProto) -> None:
    """Nothing in it."""
    model.ClearField("graph")


def without_outputs(model: onnx.ModelProto) -> None:
    """Nothing comes out."""
    del model.graph.output[:]
