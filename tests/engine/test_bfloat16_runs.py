"""bfloat16 on `backend="cpu"`, running freely: over many seeds, no further from float32 than PyTorch's own bfloat16."""

from pathlib import Path

import pytest
import torch
from control_cases import CONTROLS, Changes, asked
from runs import rel_l2

import bridle
from bridle.backends.cpu import CpuBackend

SEEDS = range(16)
MEDIAN, LARGEST = 1.25, 3.0
"""Of our distance to theirs, as reliability asks: runs are chaotic, so a single seed says nothing."""

pytestmark = pytest.mark.skipif(
    not CpuBackend.suits(torch.bfloat16),
    reason="this CPU has no vector kernels for bfloat16; that it is refused is tested in test_cpu_backend.py",
)


@pytest.fixture(scope="module")
def engines(map_folder: Path) -> tuple[bridle.Engine, bridle.Engine, bridle.Engine]:
    """Ours, PyTorch's in bfloat16, and float32."""
    kinds = (("cpu", "bfloat16"), ("reference", "bfloat16"), ("reference", "float32"))
    return tuple(bridle.load(map_folder, backend=backend, dtype=dtype) for backend, dtype in kinds)


def latents(engine: bridle.Engine, changes: Changes) -> list[torch.Tensor]:
    """Of every seed, in batches of four."""
    requests = [asked({**changes, "seed": seed, "output_type": "latent"}) for seed in SEEDS]
    found = [result for start in range(0, len(requests), 4) for result in engine.sample(requests[start : start + 4])]
    return [result.latents for result in found]


@pytest.mark.parametrize("name", CONTROLS)
def test_bfloat16_is_as_close_as_pytorch(name: str, engines: tuple[bridle.Engine, ...]) -> None:
    ours, theirs, exact = (latents(engine, CONTROLS[name]) for engine in engines)
    distances, others = (
        torch.tensor([rel_l2(one, wanted) for one, wanted in zip(runs, exact, strict=True)]) for runs in (ours, theirs)
    )
    assert others.min() > 0, "void: PyTorch's own run is exact"
    assert distances.median() <= MEDIAN * others.median()
    assert (distances <= LARGEST * torch.maximum(others, others.median())).all()
