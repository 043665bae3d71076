"""The systems: who computes, in which dtype, and what its process is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cpu.workloads import Workload


@dataclass(frozen=True)
class System:
    """runtime: name of a module function of `runtimes`, or "bridle". backend: of Bridle.

    copies: how often the weights are in memory at the worst moment, in bytes of `dtype`; not as pages of mapped files, which
    the system can take back. environment: of its process.
    """

    title: str
    runtime: str
    dtype: str
    backend: str | None = None
    copies: float = 2.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether it is what the benchmark is about."""
        return self.backend == "cpu"

    @property
    def graphs(self) -> bool:
        """Whether it is Bridle on an exported folder."""
        return self.backend == "ort"

    def gib(self, workload: Workload) -> float:
        """An estimate of its memory, GiB."""
        width = 4 if self.dtype == "float32" else 2
        activations = 0.4 + 0.1 * workload.requests * workload.rows_per_request * (1 + workload.decodes)
        return (self.copies * width * workload.parameters) / 2**30 + activations


_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

SYSTEMS: Mapping[str, System] = {
    "eager-fp32": System("PyTorch eager fp32", "eager", "float32", copies=1.1),
    "eager-bf16": System("PyTorch eager bf16, channels last", "eager", "bfloat16", copies=2.2),
    "reference-fp32": System("Bridle's reference fp32", "bridle", "float32", "reference", copies=1.2),
    "reference-bf16": System("Bridle's reference bf16", "bridle", "bfloat16", "reference", copies=1.2),
    "bridle-bf16": System("Bridle bf16", "bridle", "bfloat16", "cpu", copies=2.2),
    "compiled-bf16": System("torch.compile frozen bf16, channels last", "compiled", "bfloat16", copies=4.0),
    "openvino-bf16": System("OpenVINO bf16", "openvino", "bfloat16", copies=2.0),
    "bridle-fp32": System("Bridle fp32", "bridle", "float32", "cpu", copies=2.2),
    "onnxruntime-fp32": System("ONNX Runtime fp32", "onnxruntime", "float32", copies=2.2),
    "bridle-ort-fp32": System("Bridle's graphs in ONNX Runtime fp32", "bridle", "float32", "ort", copies=2.2),
    "bridle-fp32-avx512": System(
        "Bridle fp32, AVX-512", "bridle", "float32", "cpu", copies=2.2, environment={"BRIDLE_FORCE_ISA": "avx512"}
    ),
    "bridle-fp32-avx2": System(
        "Bridle fp32, AVX2", "bridle", "float32", "cpu", copies=2.2, environment={"BRIDLE_FORCE_ISA": "avx2"}
    ),
    "eager-fp32-avx2": System("PyTorch eager fp32, AVX2", "eager", "float32", copies=1.1, environment=_AVX2),
}
"""References first: others are held against their outputs."""

REFERENCE = {"peers": ("eager-fp32", "eager-bf16"), "own": ("reference-fp32", "reference-bf16")}
"""The float32 outputs that count as right, and PyTorch's own in bfloat16."""


def judges(system: System, workload: Workload) -> tuple[str, str]:
    """The systems that one is held against."""
    return REFERENCE["own" if system.backend is not None and workload.own_reference else "peers"]


def takes_part(name: str, workload: Workload) -> bool:
    """Whether a system has anything to do with a workload: Bridle's reference only judges, and forced ISAs only step."""
    if name.startswith("reference-"):
        return workload.own_reference
    if SYSTEMS[name].environment:
        return workload.steps == 1 and not workload.own_reference
    return True
