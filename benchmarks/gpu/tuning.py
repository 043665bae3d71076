"""Part "tuning": whether other tiles of attention than the rule's are faster, site by site, while time lasts.

`bridle tune-kernels` tries all; here are those next to the rule, of short contexts first: long ones are PyTorch's kernel's.
"""

import importlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from gpu.part import Context

TRIED = 10
"""Choices of a site: each is compiled, which takes longer than timing it."""


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One record per site: microseconds of the rule and of the best choice that computes the same."""
    if context.device != "cuda":
        yield {"name": "attention", "left_out": "there is no GPU", "problem": None}
        return
    tune = importlib.import_module("bridle_kernels.attention.tune")
    taken = 0.0
    for case in sorted(tune.CASES, key=lambda case: case.keys):
        if context.left < 1.2 * taken:
            yield {"name": str(case), "left_out": "no time was left", "problem": None}
            continue
        began = time.monotonic()
        yield site(tune, case, torch.device("cuda"))
        taken = time.monotonic() - began


def site(tune: Any, case: Any, device: torch.device) -> dict[str, Any]:
    """Of one case."""
    rule = {
        n: v
        for n, v in asdict(tune.tiles(case.dim, torch.float16, case.keys, False)).items()
        if n not in ("low", "high")
    }
    try:
        tried = nearest(rule, list(tune.choices(case)))
        best, microseconds, rule_microseconds = tune.fastest(rule, tried, tune.Timer(case, torch.float16, device, rule))
    except RuntimeError as why:
        return {"name": str(case), "problem": str(why)[:400]}
    return {"name": str(case), "rule": rule, "rule_us": round(rule_microseconds, 2), "best": best,
            "best_us": round(microseconds, 2), "problem": None}  # fmt: skip


def nearest(
    rule: Mapping[str, int], choices: Sequence[Mapping[str, int]], count: int = TRIED
) -> list[Mapping[str, int]]:
    """The choices that differ least from the rule, by doublings."""

    def doublings(choice: Mapping[str, int]) -> float:
        return sum(abs(math.log2(choice[name] / rule[name])) for name in rule)

    return sorted((choice for choice in choices if choice != rule), key=doublings)[:count]
