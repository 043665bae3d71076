"""What the words of a caption say of boxes: for controls that put objects in their places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bridle_eval.objects import Box
from captions import Kind
from held_out import Case
from world import SIZE

MARGIN = 3.0
"""Pixels around an object's true box: a model that fills a box exactly has its outline cut."""


def phrases(case: Case) -> dict[str, tuple[Kind, list[Box]]]:
    """The words of the caption for each kind of object, "red circle" or "red circles", and the boxes of these objects."""
    found: dict[str, tuple[Kind, list[Box]]] = {}
    for thing, box in zip(case.scene.things, case.truth.boxes, strict=True):
        singular = " ".join(thing.kind)
        plural = f"{singular}es" if singular.endswith("s") else f"{singular}s"
        words = case.caption.text.replace(",", " ").split()
        phrase = plural if plural.split()[-1] in words else singular
        found.setdefault(phrase, (thing.kind, []))[1].append(box)
    return found


def named(kind: Kind) -> str:
    """ "a red circle", "an orange star"."""
    return f"{'an' if kind[0][0] in 'aeiou' else 'a'} {' '.join(kind)}"


def fractions(box: Box) -> tuple[float, float, float, float]:
    """A box in pixels with its margin, as (left, top, right, bottom) from 0 to 1."""
    left, top, right, bottom = box
    grown = (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN)
    clipped = [min(max(side / SIZE, 0.0), 1.0) for side in grown]
    return clipped[0], clipped[1], clipped[2], clipped[3]


def boxes_map(boxes: list[Box]) -> npt.NDArray[np.float32]:
    """[SIZE, SIZE], 1 inside any of the boxes."""
    painted = np.zeros((SIZE, SIZE), np.float32)
    for box in boxes:
        left, top, right, bottom = (round(side * SIZE) for side in fractions(box))
        painted[top:bottom, left:right] = 1.0
    return painted
