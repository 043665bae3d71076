"""The eight shapes of the pocket world, as signed distance functions.

Every function takes coordinates in the shape's own frame (x right, y down, the
shape fits the disc of radius 1) and returns a distance in the same unit:
negative inside, positive outside, close to exact near the outline.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DistanceFunction = Callable[[FloatArray, FloatArray], FloatArray]


def _box(x: FloatArray, y: FloatArray, half_width: float, half_height: float) -> FloatArray:
    """Distance to an axis-aligned box; the Chebyshev form keeps its corners sharp."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _disc(x: FloatArray, y: FloatArray, radius: float) -> FloatArray:
    return np.sqrt(x * x + y * y) - np.float32(radius)


def circle(x: FloatArray, y: FloatArray) -> FloatArray:
    """A disc of radius 0.9."""
    return _disc(x, y, 0.9)


def square(x: FloatArray, y: FloatArray) -> FloatArray:
    """A square with sides of 1.56."""
    return _box(x, y, 0.78, 0.78)


def triangle(x: FloatArray, y: FloatArray) -> FloatArray:
    """An equilateral triangle that points up, circumradius 1.1, centred on its box."""
    y = y - np.float32(0.25)
    slanted = np.abs(x) * np.float32(math.cos(math.pi / 6)) - y * np.float32(0.5)
    return np.maximum(slanted, y) - np.float32(0.55)


def star(x: FloatArray, y: FloatArray) -> FloatArray:
    """A five-pointed star, tips at radius 1.05, notches at 0.45, one tip up."""
    sector = 2 * math.pi / 5
    angle = np.arctan2(x, -y)
    folded = np.abs(angle - sector * np.round(angle / sector)).astype(np.float32)
    radius = np.sqrt(x * x + y * y)
    along, across = radius * np.cos(folded), radius * np.sin(folded)
    notch_x, notch_y = 0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2)
    edge_x, edge_y = notch_x - 1.05, notch_y
    length = math.hypot(edge_x, edge_y)
    return ((along - np.float32(1.05)) * np.float32(edge_y / length) - across * np.float32(edge_x / length)).astype(
        np.float32
    )


def ring(x: FloatArray, y: FloatArray) -> FloatArray:
    """An annulus between the radii 0.46 and 0.94."""
    return np.abs(_disc(x, y, 0.70)) - np.float32(0.24)


def cross(x: FloatArray, y: FloatArray) -> FloatArray:
    """A plus sign with arms 0.6 wide."""
    return np.minimum(_box(x, y, 0.92, 0.30), _box(x, y, 0.30, 0.92))


def heart(x: FloatArray, y: FloatArray) -> FloatArray:
    """A heart: a square on its tip and a disc on each of its two upper sides."""
    half = 0.56
    x, y = np.abs(x), y - np.float32(0.12)
    tilted = (x + np.abs(y)) * np.float32(math.sqrt(0.5)) - np.float32(half)
    offset = np.float32(half * math.sqrt(0.5))
    return np.minimum(tilted, _disc(x - offset, y + offset, half))


def crescent(x: FloatArray, y: FloatArray) -> FloatArray:
    """A moon that opens to the right: a disc less a shifted smaller disc."""
    return np.maximum(_disc(x, y, 0.95), -_disc(x - np.float32(0.42), y, 0.72))


SHAPES: dict[str, DistanceFunction] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
    "heart": heart,
    "crescent": crescent,
}
