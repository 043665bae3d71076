"""What a prompt edit leaves alone, and how much pictures of one prompt differ."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

from bridle_eval.colours import foreground_mask
from bridle_eval.objects import best_of_kind, detect
from bridle_eval.shape_fit import overlap
from world import ByteImage


@dataclass(frozen=True)
class Preservation:
    """iou: of the object's masks before and after, 0 if it has gone. colour_distance: CIE76 between the mean colours of
    the object's pixels before and of the same pixels after; about 2 is just visible."""

    iou: float
    colour_distance: float


def preservation(before: ByteImage, after: ByteImage, kind: tuple[str, str]) -> Preservation | None:
    """How well an object outside the edit is kept, or None if it was not in the first picture. Pictures [H, W, 3] RGB."""
    own = best_of_kind(detect(before), kind)
    if own is None:
        return None
    kept = [overlap(own.mask, item.mask) for item in detect(after) if item.kind == kind]
    distance = np.linalg.norm(_lab(before)[own.mask].mean(axis=0) - _lab(after)[own.mask].mean(axis=0))
    return Preservation(max(kept, default=0.0), float(distance))


def layout_diversity(pictures: list[ByteImage]) -> float:
    """1 less the mean overlap of the objects' pixels over all pairs: 0 if all pictures place them alike.

    pictures: at least two, [H, W, 3] uint8 RGB, made from one prompt with different seeds.
    """
    masks = [foreground_mask(picture) for picture in pictures]
    return 1.0 - float(np.mean([overlap(first, second) for first, second in combinations(masks, 2)]))


def _lab(picture: ByteImage) -> np.ndarray:
    return cv2.cvtColor(picture.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
