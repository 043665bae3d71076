"""The pocket world: seeded scenes of one to four coloured shapes, drawn with full ground truth.

`sample_scene` draws a scene description from a random generator, `render` turns
it into pixels, and `ground_truth` gives what a judge needs to know about it.
Everything lies in a square of `SIZE` pixels, x to the right and y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from shapes import SHAPES, FloatArray

SIZE = 128

Rgb = tuple[int, int, int]
ByteImage = npt.NDArray[np.uint8]

COLOURS: dict[str, Rgb] = {
    "red": (218, 38, 42),
    "orange": (246, 134, 22),
    "yellow": (246, 214, 32),
    "green": (44, 160, 60),
    "cyan": (28, 196, 206),
    "blue": (36, 82, 214),
    "purple": (132, 52, 190),
    "pink": (244, 92, 176),
}
"""Object colours: saturated, their hues well apart."""

BACKGROUNDS: dict[str, Rgb] = {
    "white": (244, 244, 242),
    "gray": (164, 166, 168),
    "black": (34, 34, 38),
    "green": (196, 224, 196),
    "blue": (192, 212, 238),
    "yellow": (240, 232, 190),
    "pink": (242, 210, 222),
    "purple": (214, 202, 232),
}
"""Background colours: pale or neutral, so that no object ever melts into one."""

TEXTURES = ("plain", "gradient", "striped", "dotted", "speckled")

SIZE_RADII: dict[str, tuple[float, float]] = {"small": (14.0, 16.5), "": (18.5, 22.0), "large": (25.0, 29.0)}
"""Radius in pixels by size word; the empty word is the ordinary size."""

CROWDED_RADII: dict[str, tuple[float, float]] = {"small": (13.0, 14.5), "": (16.5, 19.0), "large": (21.0, 23.5)}
"""The same for scenes of three or four objects, where room is short."""

RELATION_GAP = 30.0
"""Centres this many pixels apart along an axis stand in a relation along it."""


@dataclass(frozen=True)
class Thing:
    """One object: its centre and radius in pixels, its tilt in radians."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    tilt: float = 0.0
    outlined: bool = False

    @property
    def kind(self) -> tuple[str, str]:
        """Colour and shape, by which captions name the object."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """Objects from the farthest to the nearest, over a background."""

    things: tuple[Thing, ...]
    background: str
    texture: str
    texture_seed: int


@dataclass(frozen=True)
class GroundTruth:
    """What is in a rendered scene, object by object in depth order, farthest first.

    boxes: left, top, right, bottom in pixels, right and bottom exclusive, of the visible part.
    masks: (objects, SIZE, SIZE) bool, the visible part of each.
    labels: (SIZE, SIZE) uint8, 0 for background and 1 + object index elsewhere.
    edges: (SIZE, SIZE) uint8, 255 on the outlines of the visible parts, else 0.
    palette: the flat colour of the background, then of each object.
    """

    boxes: tuple[tuple[int, int, int, int], ...]
    masks: npt.NDArray[np.bool_]
    labels: ByteImage
    edges: ByteImage
    palette: tuple[Rgb, ...]


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene; equal generators give equal scenes."""
    count = int(rng.choice(4, p=(0.3, 0.4, 0.18, 0.12))) + 1
    kinds = _sample_kinds(rng, count)
    return Scene(
        things=_place(rng, kinds),
        background=_pick(rng, tuple(BACKGROUNDS)),
        texture=_pick(rng, TEXTURES),
        texture_seed=int(rng.integers(2**31)),
    )


def seeded_scene(seed: int) -> Scene:
    """The scene that a seed stands for."""
    return sample_scene(np.random.default_rng(seed))


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _sample_kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Colour and shape of every object: often all alike, so that counts can be learned, else all different."""
    kinds: list[tuple[str, str]] = []
    alike = count > 1 and rng.random() < 0.35
    while len(kinds) < count:
        kind = _pick(rng, tuple(COLOURS)), _pick(rng, tuple(SHAPES))
        if alike:
            return [kind] * count
        if kind not in kinds:
            kinds.append(kind)
    return kinds


def _place(rng: np.random.Generator, kinds: list[tuple[str, str]]) -> tuple[Thing, ...]:
    """Sizes and positions by rejection: objects may touch but hardly cover each other."""
    radii = SIZE_RADII if len(kinds) < 3 else CROWDED_RADII
    while True:
        things: list[Thing] = []
        for kind in kinds:
            thing = _place_one(rng, kind, radii, things)
            if thing is None:
                break
            things.append(thing)
        if len(things) == len(kinds):
            return tuple(things)


def _place_one(
    rng: np.random.Generator,
    kind: tuple[str, str],
    radii: dict[str, tuple[float, float]],
    others: list[Thing],
) -> Thing | None:
    """One object clear of the others, or None after too many tries."""
    size = ("small", "", "", "large")[int(rng.integers(4))]
    radius = float(rng.uniform(*radii[size]))
    tilt = float(rng.uniform(-0.12, 0.12))
    outlined = bool(rng.random() < 0.25)
    for _ in range(24):
        x, y = (float(value) for value in rng.uniform(radius + 3, SIZE - radius - 3, 2))
        if all(np.hypot(x - other.x, y - other.y) > 0.93 * (radius + other.radius) for other in others):
            return Thing(kind[1], kind[0], size, x, y, radius, tilt, outlined)
    return None


def relation(first: Thing, second: Thing) -> str | None:
    """How the first lies to the second: "left of", "right of", "above", "below", or None if unclear."""
    dx, dy = second.x - first.x, second.y - first.y
    if max(abs(dx), abs(dy)) < RELATION_GAP:
        return None
    if abs(dx) > 1.3 * abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) > 1.3 * abs(dx):
        return "above" if dy > 0 else "below"
    return None


def region(thing: Thing) -> str:
    """The ninth of the picture that holds the object's centre, as "top left", "center", "bottom" and so on."""
    column = ("left", "", "right")[min(2, int(thing.x * 3 / SIZE))]
    row = ("top", "", "bottom")[min(2, int(thing.y * 3 / SIZE))]
    return f"{row} {column}".strip() or "center"


def render(scene: Scene) -> ByteImage:
    """The picture: (SIZE, SIZE, 3) uint8 RGB, anti-aliased."""
    canvas = _background(scene)
    for thing in scene.things:
        _draw(canvas, thing)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def ground_truth(scene: Scene) -> GroundTruth:
    """Boxes, masks, outlines and palette of a scene, exact because they come from the same distances."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for index, thing in enumerate(scene.things):
        rows, columns, distance = _window_distance(thing, margin=2.0)
        labels[rows, columns][distance <= 0] = index + 1
    masks = np.stack([labels == index + 1 for index in range(len(scene.things))])
    palette = (BACKGROUNDS[scene.background], *(COLOURS[thing.colour] for thing in scene.things))
    return GroundTruth(tuple(_box_of(mask) for mask in masks), masks, labels, outline_of(labels), palette)


def outline_of(labels: ByteImage) -> ByteImage:
    """255 where a pixel's label is larger than that of a neighbour on the 4-grid, else 0."""
    cross_kernel = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    eroded = cv2.erode(labels, cross_kernel, borderType=cv2.BORDER_REPLICATE)
    return ((labels > eroded) * 255).astype(np.uint8)


def _box_of(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return left, top, left + width, top + height


def _window_distance(thing: Thing, margin: float) -> tuple[slice, slice, FloatArray]:
    """Rows, columns and signed distance in pixels around an object, cut to the picture."""
    reach = 1.15 * thing.radius + margin
    left, right = max(0, int(thing.x - reach)), min(SIZE, int(thing.x + reach) + 2)
    top, bottom = max(0, int(thing.y - reach)), min(SIZE, int(thing.y + reach) + 2)
    dx = ((np.arange(left, right, dtype=np.float32) - np.float32(thing.x)) / np.float32(thing.radius))[None, :]
    dy = ((np.arange(top, bottom, dtype=np.float32) - np.float32(thing.y)) / np.float32(thing.radius))[:, None]
    cosine, sine = np.float32(np.cos(thing.tilt)), np.float32(np.sin(thing.tilt))
    distance = SHAPES[thing.shape](cosine * dx + sine * dy, cosine * dy - sine * dx)
    return slice(top, bottom), slice(left, right), distance * np.float32(thing.radius)


def _draw(canvas: FloatArray, thing: Thing) -> None:
    """Composite an object's soft shadow, then its shaded body, in place."""
    rows, columns, distance = _window_distance(thing, margin=10.0)
    patch = canvas[rows, columns]
    patch *= (1 - 0.24 * _shadow(distance))[..., None]
    body = _shaded_body(thing, rows, columns, distance)
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    patch += (body - patch) * coverage


def _shadow(distance: FloatArray) -> FloatArray:
    """Shadow strength in 0..1: the shape moved 4 pixels down and 3 right, its border 8 pixels soft."""
    moved = np.full_like(distance, 99.0)
    moved[4:, 3:] = distance[:-4, :-3]
    return np.clip(0.5 - moved / 8, 0, 1)


def _shaded_body(thing: Thing, rows: slice, columns: slice, distance: FloatArray) -> FloatArray:
    """The object's colour (height, width, 3), lit from the top left, with its outline if it has one."""
    across = (np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(thing.x))[None, :]
    down = (np.arange(rows.start, rows.stop, dtype=np.float32) - np.float32(thing.y))[:, None]
    light = 1.0 - 0.11 * (0.5 * across + down) / np.float32(thing.radius)
    if thing.outlined:
        light = light * (1 - 0.5 * np.clip(distance + 2.7, 0, 1))
    return np.asarray(COLOURS[thing.colour], np.float32) * light[..., None]


def _background(scene: Scene) -> FloatArray:
    """(SIZE, SIZE, 3) float32 in 0..255: the background's colour under its texture."""
    rng = np.random.default_rng(scene.texture_seed)
    light = 1.0 + _texture(scene.texture, rng)
    return np.asarray(BACKGROUNDS[scene.background], np.float32) * light[..., None]


def _texture(name: str, rng: np.random.Generator) -> FloatArray:
    """Relative brightness, (SIZE, SIZE), within about a tenth of 0."""
    if name == "plain":
        return np.zeros((SIZE, SIZE), np.float32)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None]
    if name == "gradient":
        return np.asarray(-0.06 + 0.10 * slope, np.float32)
    if name == "striped":
        return np.asarray(-0.04 + 0.04 * np.sin(np.float32(rng.uniform(16, 24)) * slope), np.float32)
    if name == "dotted":
        grid = np.cos(axis * np.float32(rng.uniform(24, 32)))
        return np.asarray(-0.03 - 0.03 * np.clip(4 * (grid[:, None] + grid[None, :]) - 3, -1, 1), np.float32)
    coarse = rng.standard_normal((16, 16)).astype(np.float32)
    return np.asarray(-0.03 + 0.03 * cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), np.float32)
