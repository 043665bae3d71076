"""Colour segmentation: which pixels belong to objects of which palette colour, and what the background is."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from world import BACKGROUNDS, COLOURS, ByteImage

BoolImage = npt.NDArray[np.bool_]
FloatImage = npt.NDArray[np.float32]

MIN_SATURATION = 0.31
"""About half covered by an object: backgrounds stay below 0.22, objects above 0.59."""
MIN_CHROMA = 36
"""Largest less smallest channel. On black, saturation alone would count the faintest fringe."""
CORE = np.ones((3, 3), np.uint8)
"""A colour is believed where this fits; thinner streaks are mixtures along the border of two colours."""
FRINGE = 3.0
"""Foreground this many pixels away from a core takes its colour; farther pixels are background."""


def colour_masks(picture: ByteImage) -> dict[str, BoolImage]:
    """Mask [H, W] of every object colour, by name, disjoint. picture: [H, W, 3] uint8 RGB."""
    foreground, hue = _foreground_and_hue(picture)
    names = tuple(COLOURS)
    nearest = np.argmin(_hue_distances(hue), axis=0).astype(np.uint8)
    labels = np.where(foreground, nearest + 1, 0).astype(np.uint8)
    cores = np.zeros_like(labels)
    for index in range(len(names)):
        opened = cv2.morphologyEx((labels == index + 1).astype(np.uint8), cv2.MORPH_OPEN, CORE)
        cores[opened > 0] = index + 1
    grown = _nearest_core(cores, foreground)
    return {name: _half_covered(picture, grown, index) for index, name in enumerate(names)}


def foreground_mask(picture: ByteImage) -> BoolImage:
    """Every pixel [H, W] that belongs to some object."""
    return np.logical_or.reduce(list(colour_masks(picture).values()))


def background_name(picture: ByteImage) -> str:
    """The background colour that is nearest to the median of what no object covers, a few pixels away from all."""
    covered = cv2.dilate(foreground_mask(picture).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    pixels = picture[~covered] if (~covered).any() else picture.reshape(-1, 3)
    median = np.median(pixels.astype(np.float32), axis=0)
    return min(BACKGROUNDS, key=lambda name: _pale_distance(median, np.asarray(BACKGROUNDS[name], np.float32)))


def _pale_distance(colour: FloatImage, reference: FloatImage) -> float:
    """Pale backgrounds differ in their tint, and textures change brightness: tint counts four times as much."""
    tint = (colour - colour.mean()) - (reference - reference.mean())
    return float(4 * np.square(tint).sum() + np.square(colour.mean() - reference.mean()))


def _foreground_and_hue(picture: ByteImage) -> tuple[BoolImage, FloatImage]:
    """Saturated pixels, and the hue of all in degrees."""
    pixels = picture.astype(np.float32)
    brightest = pixels.max(axis=2)
    chroma = brightest - pixels.min(axis=2)
    foreground = (chroma > MIN_SATURATION * brightest) & (chroma > MIN_CHROMA)
    return foreground, cv2.cvtColor(pixels / np.float32(255), cv2.COLOR_RGB2HSV)[:, :, 0]


def _hue_distances(hue: FloatImage) -> FloatImage:
    """[colours, H, W], degrees on the circle from each palette colour."""
    palette = np.asarray(list(COLOURS.values()), np.float32)[None] / np.float32(255)
    hues = cv2.cvtColor(palette, cv2.COLOR_RGB2HSV)[0, :, 0]
    around = np.abs(hue[None] - hues[:, None, None])
    return np.minimum(around, 360 - around)


def _half_covered(picture: ByteImage, labels: ByteImage, index: int) -> BoolImage:
    """A colour's mask with its border where the tint lies half-way between both sides.

    Tint is linear in coverage, and outlines, shading and shadow, which only darken, move both sides alike.
    """
    mask = (labels == index + 1).astype(np.uint8)
    pixels = picture.astype(np.float32)
    axis = np.asarray(tuple(COLOURS.values())[index], np.float32)
    tint = (pixels - pixels.mean(axis=2, keepdims=True)) @ (axis - axis.mean())
    halfway = (cv2.dilate(tint, CORE) + cv2.erode(tint, CORE)) / 2
    inner, outer = cv2.erode(mask, CORE) > 0, cv2.dilate(mask, CORE) > 0
    free = (labels == 0) | (mask > 0)
    refined: BoolImage = inner | (outer & free & (tint >= halfway))
    return refined


def _nearest_core(cores: ByteImage, foreground: BoolImage) -> ByteImage:
    """Every foreground pixel with the label of the core next to it."""
    if not cores.any():
        return cores
    empty = (cores == 0).astype(np.uint8)
    distance, owner = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    table = np.zeros(int(owner.max()) + 1, np.uint8)
    table[owner[cores > 0]] = cores[cores > 0]
    grown: ByteImage = np.where(foreground & (distance <= FRINGE), table[owner], 0).astype(np.uint8)
    return grown
