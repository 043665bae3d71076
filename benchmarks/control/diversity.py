"""How much pictures of one prompt differ from seed to seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import bridle
from bridle_eval.preservation import layout_diversity
from held_out import Case
from rows import Settings, plain_request
from sampling import sample_pictures

PROMPTS = 16
SEEDS = 4


def measure_diversity(engine: bridle.Engine, cases: Sequence[Case], settings: Settings, batch: int) -> dict[str, float]:
    """Layout diversity over seeds of each prompt, and for comparison over renderings of unrelated scenes."""
    chosen = cases[:PROMPTS]
    requests = [plain_request(case, settings, seed=case.seed + seed) for case in chosen for seed in range(SEEDS)]
    pictures = sample_pictures(engine, requests, batch, "diversity")
    groups = [pictures[start : start + SEEDS] for start in range(0, len(pictures), SEEDS)]
    return {
        "seeds of one prompt": round(float(np.mean([layout_diversity(group) for group in groups])), 4),
        "unrelated scenes": round(layout_diversity([case.picture for case in chosen]), 4),
    }
