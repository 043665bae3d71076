"""Which of the world's shapes a mask shows: analytic templates fitted by area, moments and a local search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt

from shapes import SHAPES

BoolImage = npt.NDArray[np.bool_]
FloatImage = npt.NDArray[np.float32]

TILTS = (-0.1, 0.0, 0.1)
"""Radians, where the local search starts."""
SOFTNESS = (0.0, 2.0)
"""Pixels; the sharp shape and the blurred one."""
RADII = tuple(float(radius) for radius in np.arange(12.0, 31.0, 1.5))
"""Pixels, tried when a mask holds several objects."""
MOST_OBJECTS = 4
MIN_GAIN = 90
"""Pixels that one more object must explain."""
SPILL = 1.5
"""What a template's pixel outside the mask costs, against 1 gained for one inside."""


@dataclass(frozen=True)
class Fit:
    """A shape with its centre, radius (pixels) and tilt (radians).

    softness: 0, or the standard deviation in pixels of a blur that rounds the shape's corners and fills its notches, as
    an autoencoder does. iou: with the mask it was fitted to.
    """

    shape: str
    x: float
    y: float
    radius: float
    tilt: float
    softness: float = 0.0
    iou: float = 0.0


def template(fit: Fit, height: int, width: int) -> BoolImage:
    """The pixels [height, width] inside the fitted shape."""
    dx = ((np.arange(width, dtype=np.float32) - np.float32(fit.x)) / np.float32(fit.radius))[None, :]
    dy = ((np.arange(height, dtype=np.float32) - np.float32(fit.y)) / np.float32(fit.radius))[:, None]
    cosine, sine = np.float32(np.cos(fit.tilt)), np.float32(np.sin(fit.tilt))
    inside: BoolImage = SHAPES[fit.shape](cosine * dx + sine * dy, cosine * dy - sine * dx) <= 0
    if fit.softness == 0:
        return inside
    return cv2.GaussianBlur(inside.astype(np.float32), (0, 0), fit.softness, borderType=cv2.BORDER_REPLICATE) > 0.5


def fit_one(mask: BoolImage) -> Fit:
    """The best single shape for a mask [H, W]."""
    starts = [_measured(_start(mask, name, tilt, soft), mask) for name, tilt, soft in product(SHAPES, TILTS, SOFTNESS)]
    best = sorted(starts, key=_iou, reverse=True)[:4]
    return max((_refined(fit, mask) for fit in best), key=_iou)


def fit_several(mask: BoolImage) -> list[Fit]:
    """Up to four shapes that together cover a mask [H, W]: the one that explains most first, then the next, then all again.

    Every returned `iou` is that of the union of all with the mask.
    """
    fits: list[Fit] = []
    left = mask.copy()
    while len(fits) < MOST_OBJECTS:
        found = _best_placed(left, mask)
        if found is None:
            break
        fits.append(found)
        left &= ~template(found, *mask.shape)
    for _ in range(2):
        for index in range(len(fits)):
            others = union([fit for place, fit in enumerate(fits) if place != index], mask.shape)
            fits[index] = _refined(fits[index], mask & ~others)
    iou = overlap(union(fits, mask.shape), mask)
    return [replace(fit, iou=iou) for fit in fits]


def union(fits: list[Fit], size: tuple[int, ...]) -> BoolImage:
    """All pixels [H, W] inside any of the shapes."""
    total = np.zeros(size, np.bool_)
    for fit in fits:
        total |= template(fit, size[0], size[1])
    return total


def overlap(first: BoolImage, second: BoolImage) -> float:
    """Intersection over union of two masks; 0 if both are empty."""
    either = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / either if either else 0.0


def _iou(fit: Fit) -> float:
    return fit.iou


def _measured(fit: Fit, mask: BoolImage) -> Fit:
    return replace(fit, iou=overlap(template(fit, *mask.shape), mask))


def _start(mask: BoolImage, name: str, tilt: float, softness: float) -> Fit:
    """Radius from the area, centre from the centroid."""
    area, centre_x, centre_y = _unit_moments(name)
    moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    radius = float(np.sqrt(moments["m00"] / area))
    cosine, sine = np.cos(tilt), np.sin(tilt)
    x = moments["m10"] / moments["m00"] - radius * (cosine * centre_x - sine * centre_y)
    y = moments["m01"] / moments["m00"] - radius * (sine * centre_x + cosine * centre_y)
    return Fit(name, float(x), float(y), radius, tilt, softness)


@lru_cache(maxsize=len(SHAPES))
def _unit_moments(name: str) -> tuple[float, float, float]:
    """Area and centroid of the shape of radius 1."""
    axis = np.linspace(-1.2, 1.2, 481, dtype=np.float32)
    inside = SHAPES[name](axis[None, :] + 0 * axis[:, None], axis[:, None] + 0 * axis[None, :]) <= 0
    rows, columns = np.nonzero(inside)
    return float(inside.sum() * (axis[1] - axis[0]) ** 2), float(axis[columns].mean()), float(axis[rows].mean())


def _refined(fit: Fit, mask: BoolImage) -> Fit:
    """Coordinate search on position, radius and tilt with shrinking steps."""
    best = _measured(fit, mask)
    for step in (1.0, 0.5, 0.25):
        for change in _changes(best, step):
            moved = _measured(change, mask)
            if moved.iou > best.iou:
                best = moved
    return best


def _changes(fit: Fit, step: float) -> list[Fit]:
    return [
        replace(fit, x=fit.x + step),
        replace(fit, x=fit.x - step),
        replace(fit, y=fit.y + step),
        replace(fit, y=fit.y - step),
        replace(fit, radius=fit.radius + step),
        replace(fit, radius=fit.radius - step),
        replace(fit, tilt=fit.tilt + 0.08 * step),
        replace(fit, tilt=fit.tilt - 0.08 * step),
    ]


def _best_placed(left: BoolImage, mask: BoolImage) -> Fit | None:
    """The shape that covers most of what is left and least outside the mask, or None if none gains enough."""
    reach = 32
    weights = np.where(left, 1.0, np.where(mask, -0.3, -SPILL)).astype(np.float32)
    weights = cv2.copyMakeBorder(weights, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=-SPILL)
    best, gain = None, float(MIN_GAIN)
    for name, radius, tilt in product(SHAPES, RADII, TILTS):
        middle = int(1.15 * radius) + 1
        if 2 * middle + 1 > min(weights.shape):
            continue
        pattern = template(Fit(name, middle, middle, radius, tilt), 2 * middle + 1, 2 * middle + 1)
        scores = cv2.matchTemplate(weights, pattern.astype(np.float32), cv2.TM_CCORR)
        _, score, _, (column, row) = cv2.minMaxLoc(scores)
        if score > gain:
            best, gain = Fit(name, column + middle - reach, row + middle - reach, radius, tilt), score
    return best
