"""`backend="cuda"` without a GPU: its kernels in Triton's interpreter, its programs without a graph.

Prints distances from the reference as JSON: `python interpreted_cuda.py MODEL`, with TRITON_INTERPRET=1.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from control_cases import CONTROLS, asked
from fake_cuda import FakeCuda
from runs import rel_l2
from torch.utils._python_dispatch import TorchDispatchMode

import bridle
from bridle.backends.static_rows import Evaluation
from bridle.backends.step_programs import Outputs, Recorder
from bridle_kernels.attention import gpu_problem
from bridle_kernels.attention.launch import Tiles, power
from bridle_kernels.group_norm import triton as group_norm
from bridle_kernels.ops import Ops, ReferenceOps

CASES = (
    ("ControlNet", "T2IAdapter", "ImagePrompt", "CaptureMaps", "InjectMap mass", "attention regions"),
    ("PromptEdit",),
)
SMALL = {"num_inference_steps": 1, "guidance_scale": 1.0, "width": 32, "height": 32, "output_type": "latent"}


def enlarge_tiles() -> None:
    """The interpreter's time is the number of tiles: here they hold whole images."""
    usual = gpu_problem.tiles

    def whole(dim: int, dtype: torch.dtype, keys: int, biased: bool) -> Tiles:
        return replace(usual(dim, dtype, keys, biased), queries=64, keys=power(keys))

    gpu_problem.tiles = whole
    group_norm.PIXELS = group_norm.SLICE


class Concatenations(TorchDispatchMode):
    """Counts images whose channels are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.found += func._schema.name == "aten::cat" and args[0][0].ndim == 4 and args[1:] == (1,)
        return func(*args, **(kwargs or {}))


class Ungraphed(FakeCuda):
    """Runs once, not once more to capture. concatenations: of images, in all its evaluations."""

    concatenations = 0

    def compute(self, evaluation: Evaluation) -> Outputs:
        """Counts."""
        with Concatenations() as mode:
            outputs = super().compute(evaluation)
        self.concatenations += mode.found
        return outputs

    def make_recorder(self) -> Recorder:
        """No graph."""
        return OpByOp()


class OpByOp:
    """See `Recorder`."""

    def capture(self, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """What runs it."""
        return run


def concatenated(engine: bridle.Engine, backend: Ungraphed, ops: Ops) -> int:
    """How often in a plain step, whose attention has nothing to concatenate."""
    backend.ops, backend.concatenations = ops, 0
    engine.sample(asked(SMALL))
    return backend.concatenations


def main(model: Path) -> None:
    """One step of every case, all in one batch."""
    enlarge_tiles()
    reference = bridle.load(model, backend="reference")
    backend = Ungraphed(reference.backend.model, torch.device("cpu"), torch.float32)
    engine = bridle.Engine(backend, reference.path)
    requests = [asked(*(CONTROLS[name] for name in case), SMALL) for case in CASES]
    ours, theirs = engine.sample(requests), reference.sample(requests)
    distances = {" ".join(c): rel_l2(a.latents, b.latents) for c, a, b in zip(CASES, ours, theirs, strict=True)}
    concatenations = [concatenated(engine, backend, ops) for ops in (backend.ops, ReferenceOps())]
    maps = {word: float(abs(ours[0].maps[word] - heat).max()) for word, heat in theirs[0].maps.items()}
    print(json.dumps({"distances": distances, "maps": maps, "concatenations": concatenations}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
