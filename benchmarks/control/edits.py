"""Prompt edits: does one object change and the other stay? Beside the same prompts and seeds without the edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import bridle
from bridle_eval.objects import best_of_kind, detect
from bridle_eval.preservation import preservation
from captions import Kind
from held_out import Case
from placed import named
from rows import Settings, plain_request
from sampling import sample_pictures
from world import COLOURS, ByteImage


@dataclass(frozen=True)
class Edit:
    """A scene of two kinds of object, one of which is to get another colour."""

    case: Case
    prompt: str
    old: Kind
    new: Kind
    kept: Kind


def held_out_edits(cases: Sequence[Case]) -> list[Edit]:
    """One per scene with two different objects that its caption names once each."""
    found = []
    for index, case in enumerate(cases):
        kinds = [kind for kind, _ in case.caption.claim.counts]
        if len(case.scene.things) != 2 or len(kinds) != 2 or kinds[0][1] == kinds[1][1]:
            continue
        old, kept = kinds
        colours = [colour for colour in COLOURS if colour not in (old[0], kept[0])]
        new = (colours[index % len(colours)], old[1])
        changed = case.caption.text.replace(" ".join(old), " ".join(new))
        prompt = changed.replace(f"{named(old).split()[0]} {' '.join(new)}", named(new))
        found.append(Edit(case, prompt, old, new, kept))
    return found


def measure_edits(
    engine: bridle.Engine, cases: Sequence[Case], settings: Settings, batch: int
) -> dict[str, dict[str, float | int]]:
    """Per way of changing the picture: share of edits that show, and how the other object fares.

    changed: the new object is there and the old one is not. iou: of the kept object's mask before and after. colour: CIE76
    distance of its mean colour, 2 is just visible. edits, kept: how many were judged.
    """
    edits = held_out_edits(cases)
    before = sample_pictures(engine, [plain_request(edit.case, settings) for edit in edits], batch, "edits: source")
    alone = [plain_request(edit.case, settings, prompt=edit.prompt) for edit in edits]
    edited = [
        plain_request(
            edit.case,
            settings,
            prompt=edit.prompt,
            attention=[bridle.PromptEdit(edit.case.caption.text, mode="refine")],
        )
        for edit in edits
    ]
    return {
        "prompt alone": _score(edits, before, sample_pictures(engine, alone, batch, "edits: prompt alone")),
        "PromptEdit": _score(edits, before, sample_pictures(engine, edited, batch, "edits: PromptEdit")),
    }


def _score(edits: Sequence[Edit], before: Sequence[ByteImage], after: Sequence[ByteImage]) -> dict[str, float | int]:
    changed, overlaps, distances = [], [], []
    for edit, one, other in zip(edits, before, after, strict=True):
        if best_of_kind(detect(one), edit.old) is None:
            continue
        found = detect(other)
        changed.append(best_of_kind(found, edit.new) is not None and best_of_kind(found, edit.old) is None)
        kept = preservation(one, other, edit.kept)
        if kept is not None:
            overlaps.append(kept.iou)
            distances.append(kept.colour_distance)
    return {
        "changed": round(float(np.mean(changed)), 4) if changed else 0.0,
        "iou": round(float(np.mean(overlaps)), 4) if overlaps else 0.0,
        "colour": round(float(np.mean(distances)), 2) if distances else 0.0,
        "edits": len(changed),
        "kept": len(overlaps),
    }
