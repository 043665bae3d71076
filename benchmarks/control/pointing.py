"""Do captured maps point at the objects that their words name? (the pointing game, arXiv 1608.00507)"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import bridle
from bridle_eval.objects import best_of_kind, detect
from bridle_eval.placement import pointing_chance, pointing_hit
from held_out import Case
from placed import phrases
from rows import Settings, plain_request
from sampling import first_image, sample_results


def measure_pointing(
    engine: bridle.Engine, cases: Sequence[Case], settings: Settings, batch: int
) -> dict[str, float | int]:
    """hits: share of the objects in the pictures whose map is largest on them. chance: what a blind map would get."""
    hits, chances = [], []
    chosen = [case for case in cases if all(count == 1 for _, count in case.caption.claim.counts)]
    requests = [_request(case, settings) for case in chosen]
    for case, result in zip(chosen, sample_results(engine, requests, batch, "pointing"), strict=True):
        found = detect(first_image(result))
        for phrase, (kind, _) in phrases(case).items():
            there = best_of_kind(found, kind)
            if there is not None:
                hits.append(pointing_hit(result.maps[phrase][0], there.mask))
                chances.append(pointing_chance(there.mask))
    count = len(hits)
    if not count:
        return {"objects": 0}
    return {"hits": round(float(np.mean(hits)), 4), "chance": round(float(np.mean(chances)), 4), "objects": count}


def _request(case: Case, settings: Settings) -> bridle.Request:
    return plain_request(case, settings, attention=[bridle.CaptureMaps(list(phrases(case)))])
