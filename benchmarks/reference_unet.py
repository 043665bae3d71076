"""Time and peak memory of one SD1.5 U-Net evaluation, 512x512, reference ops against diffusers in the same run.

    python benchmarks/reference_unet.py [--side 64] [--rows 2] [--repeats 2]

Prints one Markdown table. Weights are random, float32, CPU, and shared by both. Runs alternate and the fastest of each
counts. Memory is what PyTorch has allocated at the peak beyond the weights, so that the allocator's history has no part.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bridle.networks import unet
from bridle.networks.configs import UNetConfig
from bridle.rows import ContextPiece, ContextSegment, Rows
from bridle_kernels.ops import ReferenceOps


@dataclass(frozen=True)
class Measured:
    """seconds: fastest run. megabytes: peak of allocated memory beyond what was there before."""

    seconds: float
    megabytes: float


def evaluations(side: int, rows: int) -> dict[str, Callable[[], Tensor]]:
    """The same evaluation by diffusers and by the reference ops."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(cross_attention_dim=768).eval()
    weights, config = model.state_dict(), UNetConfig.from_dict(dict(model.config), "config.json")
    sample, text = torch.randn(rows, 4, side, side), torch.randn(rows, 77, 768)
    timesteps = torch.full((rows,), 500.0)
    ops = ReferenceOps()

    def bridle() -> Tensor:
        table = unet.time_table(ops, weights, config, timesteps)
        context = (ContextSegment((ContextPiece(unet.cross_kv(ops, weights, config, text)),)),)
        return unet.unet(ops, weights, config, Rows(sample, table, context), {})

    def diffusers() -> Tensor:
        return model(sample, timesteps, encoder_hidden_states=text, return_dict=False)[0]

    return {"diffusers": diffusers, "bridle reference": bridle}


def seconds(evaluate: Callable[[], Tensor]) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    evaluate()
    return time.perf_counter() - start


def peak_megabytes(evaluate: Callable[[], Tensor]) -> float:
    """Highest sum of PyTorch's allocations during one call, above that at its start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        evaluate()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak / 2**20


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="side of the latent")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    with torch.inference_mode():
        calls = evaluations(arguments.side, arguments.rows)
        times = {name: [] for name in calls}
        for _ in range(arguments.repeats):
            for name, call in calls.items():
                times[name].append(seconds(call))
        measured = {name: Measured(min(times[name]), peak_megabytes(call)) for name, call in calls.items()}
    print_table(measured)


def print_table(measured: dict[str, Measured]) -> None:
    """Rows per implementation and their ratio."""
    theirs, mine = measured["diffusers"], measured["bridle reference"]
    print("| | seconds | peak MiB |\n|---|---|---|")
    for name, values in measured.items():
        print(f"| {name} | {values.seconds:.2f} | {values.megabytes:.0f} |")
    print(f"| ratio | {mine.seconds / theirs.seconds:.3f} | {mine.megabytes / theirs.megabytes:.3f} |")


if __name__ == "__main__":
    main()
