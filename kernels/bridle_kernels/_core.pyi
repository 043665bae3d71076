from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def guide_step_blend(tensors: Mapping[str, object], arrays: Mapping[str, object], isa: str = "") -> None: ...

class ThreadPool:
    """Threads that run the tasks of an op together, the caller's among them.

    pinned: the others stay on a CPU each, where the process may use as many.
    """

    def __init__(self, threads: int, pinned: bool = False) -> None: ...
    @property
    def threads(self) -> int: ...

class PackedWeights:
    """Weights in the order in which a variant reads them: their rows one after another, widths: of the spans of K.

    weight: [N, K] or [N, taps, channels] of float32 or bfloat16, with any strides; several of a list are stacked.
    gated: there are 2 N rows, N values and then their N gates; a product is value * gelu(gate). pool: None computes
    alone.
    """

    def __init__(
        self,
        weight: object,
        widths: Sequence[int],
        dtype: str = "float32",
        isa: str = "",
        gated: bool = False,
        pool: ThreadPool | None = None,
    ) -> None: ...
    @staticmethod
    def packed_before(
        packed: object, rows: int, widths: Sequence[int], dtype: str = "float32", isa: str = "", gated: bool = False
    ) -> PackedWeights:
        """Memory of weights that had so many rows, which has to begin at a cache line. It is kept, not copied."""
    @property
    def bytes(self) -> int: ...
    @property
    def memory(self) -> NDArray[np.uint8]:
        """All panels, read-only."""

def weight_layout(dtype: str, isa: str = "") -> str:
    """What packed bytes depend on beside weights and widths: bytes of another layout are not to be read."""

def attention(
    pool: ThreadPool,
    q: object,
    segments: Sequence[Mapping[str, object]],
    out: object,
    *,
    gate: Sequence[float],
    scale: float,
    causal: bool = False,
    float32_scores: bool = False,
    accumulate: bool = False,
    isa: str = "",
) -> None: ...
def linear(
    pool: ThreadPool,
    weights: PackedWeights,
    x: object,
    out: object,
    *,
    bias: object = None,
    residual: object = None,
    activation: str = "",
) -> None: ...
def conv2d(
    pool: ThreadPool,
    weights: PackedWeights,
    sources: Sequence[object],
    out: object,
    *,
    kernel: Sequence[int],
    stride: int = 1,
    padding: Sequence[int] = (1, 1, 1, 1),
    upsample: Sequence[int] = (),
    bias: object = None,
    shift: object = None,
    residual: object = None,
    activation: str = "",
) -> None: ...
def upsampled_conv2d(
    pool: ThreadPool,
    phases: Sequence[PackedWeights],
    sources: Sequence[object],
    out: object,
    *,
    bias: object = None,
    shift: object = None,
    residual: object = None,
    activation: str = "",
) -> None: ...
def group_norm(
    pool: ThreadPool,
    sources: Sequence[object],
    out: object,
    weight: object,
    bias: object,
    *,
    groups: int,
    eps: float,
    scale: object = None,
    shift: object = None,
    activation: str = "",
    isa: str = "",
) -> None: ...
def layer_norm(
    pool: ThreadPool, x: object, out: object, weight: object, bias: object, *, eps: float, isa: str = ""
) -> None: ...
def residual_add(pool: ThreadPool, x: object, terms: Sequence[Mapping[str, object]]) -> None: ...
def average_pool(pool: ThreadPool, x: object, out: object) -> None: ...
def area_pool(pool: ThreadPool, x: object, out: object) -> None: ...
def copy(pool: ThreadPool, x: object, out: object) -> None: ...
def pointwise(
    pool: ThreadPool, x: object, out: object, *, scale: float = 1.0, shift: float = 0.0, activation: str = ""
) -> None: ...
def time_embedding(pool: ThreadPool, t: object, frequencies: object, out: object, *, cosines_first: bool) -> None: ...
def embedding(pool: ThreadPool, ids: object, tokens: object, positions: object, out: object) -> None: ...
def end_token(pool: ThreadPool, x: object, ids: object, out: object, *, end: int | None) -> None: ...

class PlanTensor:
    """A tensor of a plan. offset: bytes from the first of its buffer. strides: in elements."""

    def __init__(self, buffer: int, offset: int, dtype: str, shape: Sequence[int], strides: Sequence[int]) -> None: ...

class Plan:
    """Ops in order, over buffers of one arena."""

    def __init__(self) -> None: ...
    def add_buffer(self, bytes: int) -> int: ...
    def add_input(self, bytes: int) -> int: ...
    def add_constant(self, data: int) -> int: ...
    def add_row_port(self) -> int: ...
    def keep(self, buffer: int) -> None: ...
    def finish(self) -> None: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def nodes(self) -> list[str]: ...
    def linear(self, weights: PackedWeights, x: PlanTensor, out: PlanTensor, **options: object) -> None: ...
    def conv2d(
        self, weights: PackedWeights, sources: Sequence[PlanTensor], out: PlanTensor, **options: object
    ) -> None: ...
    def upsampled_conv2d(
        self, phases: Sequence[PackedWeights], sources: Sequence[PlanTensor], out: PlanTensor, **options: object
    ) -> None: ...
    def group_norm(
        self, sources: Sequence[PlanTensor], out: PlanTensor, weight: PlanTensor, bias: PlanTensor, **options: object
    ) -> None: ...
    def layer_norm(
        self, x: PlanTensor, out: PlanTensor, weight: PlanTensor, bias: PlanTensor, *, eps: float
    ) -> None: ...
    def own_attention(
        self,
        q: PlanTensor,
        k: Sequence[PlanTensor],
        v: Sequence[PlanTensor],
        out: PlanTensor,
        *,
        row_port: int,
        **options: object,
    ) -> None: ...
    def bound_attention(self, q: PlanTensor, out: PlanTensor, **options: object) -> int: ...
    def residual_add(self, x: PlanTensor) -> int: ...
    def average_pool(self, x: PlanTensor, out: PlanTensor) -> None: ...
    def area_pool(self, x: PlanTensor, out: PlanTensor) -> None: ...
    def copy(self, x: PlanTensor, out: PlanTensor) -> None: ...
    def pointwise(self, x: PlanTensor, out: PlanTensor, *, scale: float, shift: float, activation: str) -> None: ...
    def time_embedding(
        self, t: PlanTensor, frequencies: PlanTensor, out: PlanTensor, *, cosines_first: bool
    ) -> None: ...
    def embedding(self, ids: PlanTensor, tokens: PlanTensor, positions: PlanTensor, out: PlanTensor) -> None: ...
    def end_token(self, x: PlanTensor, ids: PlanTensor, out: PlanTensor, *, end: int | None) -> None: ...

class Frame:
    """The memory of one evaluation of a plan at a time."""

    def __init__(self, plan: Plan) -> None: ...
    @property
    def bytes(self) -> int: ...
    def memory(self, buffer: int, bytes: int) -> NDArray[np.uint8]: ...
    def bind_segments(self, port: int, segments: Sequence[Mapping[str, object]], q: PlanTensor) -> None: ...
    def bind_residuals(self, port: int, terms: Sequence[Mapping[str, object]], x: PlanTensor) -> None: ...
    def bind_rows(self, port: int, rows: Sequence[int]) -> None: ...
    def run(self, pool: ThreadPool) -> None: ...
    def profile(self, pool: ThreadPool) -> list[float]: ...
