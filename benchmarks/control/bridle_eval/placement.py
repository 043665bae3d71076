"""Are objects where they were asked to be, and do heat maps point at them?"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from bridle_eval.colours import BoolImage
from bridle_eval.objects import Box, Detected

POINTING_TOLERANCE = 8.0
"""Pixels: one latent cell, the grain of the finest attention map."""


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(width * height / (sum(areas) - width * height))


def placement_iou(found: list[Detected], kind: tuple[str, str], box: Box) -> float:
    """Overlap of `box` (pixels) with the box of that object of `kind` which lies best; 0 if there is none."""
    return max((box_iou(item.box, box) for item in found if item.kind == kind), default=0.0)


def share_in_box(found: list[Detected], kind: tuple[str, str], box: Box) -> float:
    """Share, 0 to 1, of the pixels of all objects of `kind` that lie inside `box`; 0 if there is none.

    The effect of a map or region is this with it, less this without it, for the same seed.
    """
    masks = [item.mask for item in found if item.kind == kind]
    if not masks:
        return 0.0
    left, top, right, bottom = (round(value) for value in box)
    inside = sum(int(mask[max(0, top) : bottom, max(0, left) : right].sum()) for mask in masks)
    return inside / sum(int(mask.sum()) for mask in masks)


def pointing_hit(heat: npt.NDArray[np.floating], mask: BoolImage, tolerance: float = POINTING_TOLERANCE) -> bool:
    """The pointing game (arXiv 1608.00507): does the largest value of a heat map [h, w] lie on the object?

    mask: the object's, [H, W]; the heat map is scaled to its size. tolerance: pixels beside the object that still count.
    """
    height, width = mask.shape
    scaled = cv2.resize(np.asarray(heat, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    row, column = np.unravel_index(int(np.argmax(scaled)), scaled.shape)
    return bool(_near(mask, tolerance)[row, column])


def pointing_chance(mask: BoolImage, tolerance: float = POINTING_TOLERANCE) -> float:
    """How often a map that knows nothing would hit: the share of the picture that counts as the object."""
    return float(_near(mask, tolerance).mean())


def _near(mask: BoolImage, tolerance: float) -> BoolImage:
    if not mask.any():
        return np.zeros_like(mask)
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= tolerance
