"""The columns of the ruler: what each measures on a picture of a held-out scene, 0 to 1, larger is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bridle_eval.claims import counting_accuracy, exact_accuracy, object_accuracy, relation_accuracy
from bridle_eval.colours import background_name
from bridle_eval.objects import Detected, detect
from bridle_eval.outlines import canny_f1, edge_f1, object_outlines, segmentation_iou
from bridle_eval.placement import placement_iou
from held_out import Case
from world import ByteImage


@dataclass(frozen=True)
class Score:
    """mean of the pictures to which the measure applies, the mean's standard error, and their number."""

    mean: float
    error: float
    count: int


Measure = Callable[[Case, ByteImage, list[Detected]], float | None]


def background_accuracy(case: Case, picture: ByteImage, found: list[Detected]) -> float | None:
    """1 for the background colour that the caption claims; None if it claims none."""
    claimed = case.caption.claim.background
    return None if claimed is None else float(background_name(picture) == claimed)


def mean_placement(case: Case, picture: ByteImage, found: list[Detected]) -> float:
    """Mean overlap of every object's true box with that of the object found there."""
    pairs = zip(case.scene.things, case.truth.boxes, strict=True)
    return float(np.mean([placement_iou(found, thing.kind, box) for thing, box in pairs]))


def sketch_f1(case: Case, picture: ByteImage, found: list[Detected]) -> float:
    """Outlines of the detected objects against those of the scene's."""
    return edge_f1(object_outlines(found, *picture.shape[:2]), case.truth.edges > 0)


MEASURES: Mapping[str, Measure] = {
    "objects": lambda case, picture, found: object_accuracy(case.caption.claim, found),
    "counting": lambda case, picture, found: counting_accuracy(case.caption.claim, found),
    "exact": lambda case, picture, found: exact_accuracy(case.caption.claim, found),
    "relation": lambda case, picture, found: relation_accuracy(case.caption.claim, found),
    "background": background_accuracy,
    "placement IoU": mean_placement,
    "edge F1": lambda case, picture, found: canny_f1(picture, case.hints["canny"][:, :, 0] > 0),
    "mask IoU": lambda case, picture, found: segmentation_iou(picture, case.hints["seg"]),
    "sketch F1": sketch_f1,
}
"""Column name -> measure."""


def score_row(cases: Sequence[Case], pictures: Sequence[ByteImage]) -> dict[str, Score]:
    """Every measure over pictures that belong to `cases` in order."""
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for case, picture in zip(cases, pictures, strict=True):
        found = detect(picture)
        for name, measure in MEASURES.items():
            value = measure(case, picture, found)
            if value is not None:
                values[name].append(value)
    return {name: _score(items) for name, items in values.items() if items}


def _score(values: Sequence[float]) -> Score:
    error = float(np.std(values) / np.sqrt(len(values)))
    return Score(round(float(np.mean(values)), 4), round(error, 4), len(values))
