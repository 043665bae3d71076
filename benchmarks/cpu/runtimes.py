"""What runs a peer's network: a function of a module and example inputs that gives a function of inputs.

Each is given `files`, a folder of exported networks; `export` of the same name fills it, in a process of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

Inputs = Sequence[Tensor]
Call = Callable[[Inputs], tuple[Tensor, ...]]
Make = Callable[[torch.dtype], nn.Module]
"""Makes the module in a dtype."""


def eager(make: Make, dtype: torch.dtype, inputs: Inputs, files: Path, notes: dict[str, str]) -> Call:
    """PyTorch as it is; channels last for bfloat16."""
    module = _module(make, dtype)
    return lambda given: tuple(module(*_converted(given, dtype)))


def compiled(make: Make, dtype: torch.dtype, inputs: Inputs, files: Path, notes: dict[str, str]) -> Call:
    """torch.compile with frozen weights."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    module = torch.compile(_module(make, dtype), dynamic=False)
    return lambda given: tuple(module(*_converted(given, dtype)))


def onnxruntime(make: Make, dtype: torch.dtype, inputs: Inputs, files: Path, notes: dict[str, str]) -> Call:
    """Static shapes, all graph optimisations; threads that wait for the next run do not spin."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(str(files / "network.onnx"), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def call(given: Inputs) -> tuple[Tensor, ...]:
        feed = {name: tensor.float().contiguous().numpy() for name, tensor in zip(names, given, strict=True)}
        return tuple(torch.from_numpy(array) for array in session.run(None, feed))

    return call


def openvino(make: Make, dtype: torch.dtype, inputs: Inputs, files: Path, notes: dict[str, str]) -> Call:
    """Static shapes, bfloat16 asked for; `notes` has what the device makes of that."""
    import openvino as ov

    core = ov.Core()
    model = core.compile_model(
        files / "network.xml",
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    notes["precision"] = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    notes["capabilities"] = " ".join(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    request = model.create_infer_request()

    def call(given: Inputs) -> tuple[Tensor, ...]:
        found = request.infer([tensor.float().contiguous().numpy() for tensor in given])
        return tuple(torch.from_numpy(found[output].copy()) for output in model.outputs)

    return call


def export_onnxruntime(make: Make, inputs: Inputs, files: Path) -> None:
    """An ONNX file of static shapes with its weights beside it."""
    with torch.no_grad():
        torch.onnx.export(make(torch.float32).eval(), tuple(inputs), files / "network.onnx", dynamo=True)


def export_openvino(make: Make, inputs: Inputs, files: Path) -> None:
    """OpenVINO's own format, read from PyTorch, so that attention stays one op."""
    import openvino as ov

    module = make(torch.float32).eval()
    with torch.no_grad():
        model = ov.convert_model(module, example_input=tuple(inputs), input=[tuple(x.shape) for x in inputs])
    ov.save_model(model, files / "network.xml", compress_to_fp16=False)


def _module(make: Make, dtype: torch.dtype) -> nn.Module:
    module = make(dtype).eval()
    return module.to(memory_format=torch.channels_last) if dtype == torch.bfloat16 else module


def _converted(given: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """Timesteps, the only vector, stay float32."""
    found = [tensor if tensor.dim() == 1 else tensor.to(dtype) for tensor in given]
    if dtype != torch.bfloat16:
        return found
    return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in found]


RUNTIMES: Mapping[str, Callable[[Make, torch.dtype, Inputs, Path, dict[str, str]], Call]] = {
    "eager": eager,
    "compiled": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
EXPORTERS: Mapping[str, Callable[[Make, Inputs, Path], None]] = {
    "onnxruntime": export_onnxruntime,
    "openvino": export_openvino,
}
