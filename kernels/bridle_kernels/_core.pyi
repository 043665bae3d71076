from collections.abc import Mapping, Sequence

def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def guide_step_blend(tensors: Mapping[str, object], arrays: Mapping[str, object], isa: str = "") -> None: ...

class ThreadPool:
    """Threads that run the tasks of an op together, the caller's among them."""

    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class PackedWeights:
    """Weights [N, K] float32 in the order in which a variant reads them. widths: of the spans, K together.

    gated: weight is [2 N, K], N values and then their N gates; a product is value * gelu(gate).
    """

    def __init__(
        self, weight: object, widths: Sequence[int], dtype: str = "float32", isa: str = "", gated: bool = False
    ) -> None: ...
    @property
    def bytes(self) -> int: ...

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
    upsample: int = 1,
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
