"""Objects in a picture: colour, shape, place and mask of each, found without any learned judge."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np

from bridle_eval.colours import BoolImage, colour_masks
from bridle_eval.shape_fit import Fit, fit_one, fit_several, template
from world import ByteImage

MIN_AREA = 90
"""Pixels; the smallest object of the world has 230."""
MIN_THICKNESS = 2.0
"""Pixels from the middle of the thickest part to its border."""
GOOD_FIT = 0.88
"""A single shape that fits this well is not questioned; below, two to four touching objects are tried."""
BETTER = 0.03
"""By how much several shapes must fit better than one."""
SEVERAL_FIT = 0.86
"""Several shapes must cover a part as well as this: three of them explain any blob to some extent."""
RECOGNISED = 0.72
"""Below this intersection over union with every template, the shape counts as none of the world's."""

MAIN_SHARE = 0.6
"""Of an object's pixels must have its colour; autoencoders stain borders."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detected:
    """One object of a picture.

    shape: "" if it is none of the world's. box: left, top, right, bottom in pixels, right and bottom exclusive. centre:
    (x, y) of the box's middle. mask: [H, W] bool. fit: intersection over union with the shape's template.
    """

    colour: str
    shape: str
    box: tuple[int, int, int, int]
    mask: BoolImage
    fit: float

    @property
    def kind(self) -> tuple[str, str]:
        """Colour and shape, as in captions."""
        return self.colour, self.shape

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, (x, y) in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


def detect(picture: ByteImage) -> list[Detected]:
    """All objects of a picture [H, W, 3] uint8 RGB, largest first."""
    masks = colour_masks(picture)
    found = []
    for group in _parts(np.logical_or.reduce(list(masks.values()))):
        colours = {colour: mask & group for colour, mask in masks.items() if (mask & group).any()}
        colours = _one_coloured(colours, group)
        found += [
            item for colour, mask in colours.items() for part in _parts(mask) for item in _objects_of(colour, part)
        ]
    return sorted(found, key=lambda item: -int(item.mask.sum()))


def kinds(found: list[Detected]) -> Counter[tuple[str, str]]:
    """How many objects of each colour and shape there are."""
    return Counter(item.kind for item in found)


def best_of_kind(found: list[Detected], kind: tuple[str, str]) -> Detected | None:
    """The best fitting object of a colour and shape, or None."""
    return max((item for item in found if item.kind == kind), key=lambda item: item.fit, default=None)


def _one_coloured(colours: dict[str, BoolImage], group: BoolImage) -> dict[str, BoolImage]:
    """A connected group whose colours together make one shape is one object that has stains: it gets its main colour."""
    main = max(colours, key=lambda colour: int(colours[colour].sum()))
    if len(colours) == 1 or colours[main].sum() < MAIN_SHARE * group.sum():
        return colours
    left, top, width, height = cv2.boundingRect(group.astype(np.uint8))
    whole = fit_one(group[top : top + height, left : left + width])
    return {main: group} if whole.iou >= GOOD_FIT else colours


def _parts(mask: BoolImage) -> list[BoolImage]:
    """Connected parts that are large and thick enough to be objects."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    parts = [labels == index for index in range(1, count) if statistics[index, cv2.CC_STAT_AREA] >= MIN_AREA]
    return [part for part in parts if _thickness(part) >= MIN_THICKNESS]


def _thickness(mask: BoolImage) -> float:
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return float(cv2.distanceTransform(padded, cv2.DIST_L2, 5).max())


def _objects_of(colour: str, part: BoolImage) -> list[Detected]:
    """The one object, or the touching objects, of a connected part."""
    left, top, width, height = cv2.boundingRect(part.astype(np.uint8))
    crop = part[top : top + height, left : left + width]
    fits = _explained(crop)
    return [_placed(colour, fit, mask, part.shape, left, top) for fit, mask in _shared_out(fits, crop)]


def _explained(crop: BoolImage) -> list[Fit]:
    one = fit_one(crop)
    if one.iou >= GOOD_FIT:
        return [one]
    several = fit_several(crop)
    if len(several) > 1 and several[0].iou > max(SEVERAL_FIT, one.iou + BETTER):
        return several
    return [one]


def _shared_out(fits: list[Fit], crop: BoolImage) -> list[tuple[Fit, BoolImage]]:
    """Each shape with its pixels of the crop: the nearest shape's, measured by the distance to its template."""
    if len(fits) == 1:
        return [(fits[0], crop)]
    outside = [(~template(fit, *crop.shape)).astype(np.uint8) for fit in fits]
    inside = [cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) for mask in outside]
    owner = np.argmin(
        [cv2.distanceTransform(m, cv2.DIST_L2, 5) - i for m, i in zip(outside, inside, strict=True)], axis=0
    )
    return [(fit, crop & (owner == index)) for index, fit in enumerate(fits)]


def _placed(colour: str, fit: Fit, mask: BoolImage, size: tuple[int, ...], left: int, top: int) -> Detected:
    whole = np.zeros(size, np.bool_)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    x, y, width, height = cv2.boundingRect(whole.astype(np.uint8))
    shape = fit.shape if fit.iou >= RECOGNISED else ""
    return Detected(colour, shape, (x, y, x + width, y + height), whole, fit.iou)
