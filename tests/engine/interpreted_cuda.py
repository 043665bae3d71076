"""`backend="cuda"` without a GPU: its kernels in Triton's interpreter, its programs without a graph.

Prints distances from the reference as JSON: `python interpreted_cuda.py MODEL`, with TRITON_INTERPRET=1.
"""

import json
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from basics import half_mask, rel_l2
from control_cases import CONTROLS, REGIONS, Changes, asked, distance
from fake_cuda import FakeCuda
from torch.utils._python_dispatch import TorchDispatchMode

import bridle
from bridle.backends.static_rows import Evaluation
from bridle.backends.step_programs import Outputs, Recorder
from bridle_kernels.attention import gpu_problem
from bridle_kernels.attention.launch import Tiles, power
from bridle_kernels.group_norm import triton as group_norm
from bridle_kernels.ops import Ops, ReferenceOps
from bridle_kernels.triton_launch import Launch

CASES = (
    ("ControlNet", "T2IAdapter", "ImagePrompt", "CaptureMaps", "InjectMap mass", "attention regions"),
    ("PromptEdit",),
)
SMALL = {"num_inference_steps": 1, "guidance_scale": 1.0, "width": 32, "height": 32, "output_type": "latent"}
TWO_STEPS = {**SMALL, "num_inference_steps": 2, "scheduler": "euler a", "noise": "philox"}
WHOLE: tuple[Changes, ...] = (
    *(CONTROLS[name] for name in ("inpainting", "Reweight", "InjectMap bias")),
    {**TWO_STEPS, "guidance_scale": 5.0, "output_type": "np", "mask_image": half_mask(32)},
    {"regions": REGIONS[:1], "region_mode": "latent", "bootstrapping_steps": 1},
)
"""Guidance, known regions, regions with latents of their own, edits of maps, counted noise and the autoencoder."""
WINDOWS = {**TWO_STEPS, "width": 48, "views": bridle.Views(32, 16)}


def enlarge_tiles() -> None:
    """The interpreter's time is the number of tiles: here they hold whole images."""
    usual = gpu_problem.tiles

    def whole(dim: int, dtype: torch.dtype, keys: int, biased: bool) -> Tiles:
        return replace(usual(dim, dtype, keys, biased), queries=64, keys=power(keys))

    gpu_problem.tiles = whole
    group_norm.CHANNELS = 128


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


def concatenated(engine: bridle.Engine, backend: Ungraphed, ops: Ops) -> tuple[int, torch.Tensor]:
    """How often in two plain steps of two windows, whose attention has nothing to concatenate; and their latents."""
    backend.ops, backend.concatenations = ops, 0
    latents = engine.sample(asked(WINDOWS)).latents
    return backend.concatenations, latents


@contextmanager
def counted_launches(backend: Ungraphed) -> Iterator[dict[str, set[str]]]:
    """Names of the kernels that are launched, by the network: "step", "decoder", "encoder", ..."""
    found: dict[str, set[str]] = {"step": set()}
    run_network, start, inside = backend.run_network, Launch.compile_and_run, ["step"]

    def named(name: Hashable, *arguments: Any) -> tuple[torch.Tensor, ...]:
        inside[0] = str(name)
        outputs = run_network(name, *arguments)
        inside[0] = "step"
        return outputs

    def counted(launch: Launch) -> None:
        found.setdefault(inside[0], set()).add(launch.kernel.__name__)
        start(launch)

    backend.run_network, Launch.compile_and_run = named, counted  # type: ignore[method-assign]
    yield found
    backend.run_network, Launch.compile_and_run = run_network, start  # type: ignore[method-assign]


def main(model: Path) -> None:
    """One step of every case, all in one batch; two of windows; two of a whole pipeline."""
    enlarge_tiles()
    reference = bridle.load(model, backend="reference")
    backend = Ungraphed(reference.backend.model, torch.device("cpu"), torch.float32)
    engine = bridle.Engine(backend, reference.path)
    requests = [asked(*(CONTROLS[name] for name in case), SMALL) for case in CASES]
    ours, theirs = engine.sample(requests), reference.sample(requests)
    distances = {" ".join(c): rel_l2(a.latents, b.latents) for c, a, b in zip(CASES, ours, theirs, strict=True)}
    own = backend.ops
    (concatenations, windows), (copies, _) = (concatenated(engine, backend, ops) for ops in (own, ReferenceOps()))
    distances["Views"] = rel_l2(windows, reference.sample(asked(WINDOWS)).latents)
    maps = {word: float(abs(ours[0].maps[word] - heat).max()) for word, heat in theirs[0].maps.items()}
    backend.ops = own
    with counted_launches(backend) as launches:
        image = engine.sample(asked(*WHOLE))
    distances["whole"] = distance(image, reference.sample(asked(*WHOLE)))
    launched = {name: sorted(kernels) for name, kernels in launches.items()}
    found = {"concatenations": [concatenations, copies], "launched": launched}
    print(json.dumps({"distances": distances, "maps": maps, **found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
