"""What the networks are computed with: their tests hold for every vocabulary that a CPU has."""

import pytest

from bridle_kernels import _core
from bridle_kernels.executor import Immediate
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.ops import Ops, ReferenceOps
from bridle_kernels.packed_weights import PackedWeights


@pytest.fixture(params=["reference", "native"])
def ops(request: pytest.FixtureRequest) -> Ops:
    """The reference, and the C++ core."""
    return (
        ReferenceOps() if request.param == "reference" else NativeOps(Immediate(_core.ThreadPool(1)), PackedWeights())
    )
