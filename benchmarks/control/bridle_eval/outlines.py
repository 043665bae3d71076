"""How well a picture follows edges, outlines and colour areas that were asked for."""

from __future__ import annotations

import cv2
import numpy as np

from bridle_eval.colours import BoolImage, colour_masks
from bridle_eval.objects import Detected
from bridle_eval.shape_fit import overlap
from world import COLOURS, ByteImage, outline_of

TOLERANCE = 2.0
"""Pixels, of 128, between an edge and its counterpart."""
CANNY_THRESHOLDS = (100, 200)


def canny_edges(picture: ByteImage, contrast: float = 1.0) -> BoolImage:
    """Edges [H, W] of a picture [H, W, 3] uint8 RGB by Canny, with the thresholds of the pocket model's control.

    contrast: factor on both thresholds.
    """
    low, high = (contrast * threshold for threshold in CANNY_THRESHOLDS)
    return cv2.Canny(picture, low, high) > 0


def canny_f1(picture: ByteImage, wanted: BoolImage, tolerance: float = TOLERANCE) -> float:
    """`edge_f1` of a picture's edges against a Canny control image [H, W].

    A wanted edge is also found at half the contrast, since an autoencoder softens edges; an edge that nobody wanted counts
    at full contrast only.
    """
    return _f1(canny_edges(picture), canny_edges(picture, 0.5), wanted, tolerance)


def object_outlines(found: list[Detected], height: int, width: int) -> BoolImage:
    """Outlines [H, W] of the detected objects, one pixel wide, on their inner side."""
    labels = np.zeros((height, width), np.uint8)
    for index, item in enumerate(found):
        labels[item.mask] = index + 1
    return outline_of(labels) > 0


def edge_f1(found: BoolImage, wanted: BoolImage, tolerance: float = TOLERANCE) -> float:
    """Harmonic mean of precision and recall of edge pixels [H, W]; one counts if the other has one within `tolerance`.

    1 if both are empty, 0 if one is.
    """
    return _f1(found, found, wanted, tolerance)


def _f1(strong: BoolImage, faint: BoolImage, wanted: BoolImage, tolerance: float) -> float:
    """Precision of the strong edges, recall by the faint ones, which hold the strong."""
    if not faint.any() or not wanted.any():
        return float(not strong.any() and not wanted.any())
    recall = float((_distance_to(faint)[wanted] <= tolerance).mean())
    precision = float((_distance_to(wanted)[strong] <= tolerance).mean()) if strong.any() else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def segmentation_iou(picture: ByteImage, wanted: ByteImage) -> float:
    """Mean intersection over union of the colour areas. wanted: [H, W, 3], areas in palette colours on black."""
    shown = colour_masks(picture)
    areas = {name: np.all(wanted == np.asarray(rgb, np.uint8), axis=2) for name, rgb in COLOURS.items()}
    return float(np.mean([overlap(shown[name], area) for name, area in areas.items() if area.any()]))


def _distance_to(edges: BoolImage) -> np.ndarray:
    return cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
