"""Scenes and their ground truth: seeded, and true to the pixels."""

import dataclasses

import cv2
import numpy as np
import pytest

from world import BACKGROUNDS, COLOURS, SIZE, TEXTURES, Scene, Thing, ground_truth, relation, render, seeded_scene

SEEDS = range(5000, 5120)


def lone(shape: str, **changes: object) -> Scene:
    fields = {"colour": "red", "size": "", "x": 61.3, "y": 66.8, "radius": 21.0}
    return Scene((Thing(shape=shape, **{**fields, **changes}),), "white", "plain", 0)


def test_seed_decides_everything() -> None:
    assert seeded_scene(7) == seeded_scene(7)
    assert np.array_equal(render(seeded_scene(7)), render(seeded_scene(7)))
    assert len({render(seeded_scene(seed)).tobytes() for seed in range(50)}) == 50


def test_scenes_cover_the_world() -> None:
    scenes = [seeded_scene(seed) for seed in range(600)]
    things = [thing for scene in scenes for thing in scene.things]
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4}
    assert len({thing.kind for thing in things}) == 64
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {scene.texture for scene in scenes} == set(TEXTURES)
    assert {thing.outlined for thing in things} == {True, False}
    assert {thing.size for thing in things} == {"small", "", "large"}


@pytest.mark.parametrize("seed", SEEDS)
def test_ground_truth_is_consistent(seed: int) -> None:
    scene = seeded_scene(seed)
    truth = ground_truth(scene)
    assert truth.masks.shape == (len(scene.things), SIZE, SIZE)
    assert (truth.masks.sum(axis=0) <= 1).all()
    assert np.array_equal(truth.labels > 0, truth.masks.any(axis=0))
    for mask, (left, top, right, bottom) in zip(truth.masks, truth.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (left, top, right, bottom)
        assert min(left, top) > 0 and max(right, bottom) < SIZE
    assert truth.palette == (BACKGROUNDS[scene.background], *(COLOURS[thing.colour] for thing in scene.things))


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_are_where_the_pixels_are(seed: int) -> None:
    scene = seeded_scene(seed)
    truth, picture = ground_truth(scene), render(scene)
    bare = render(dataclasses.replace(scene, things=()))
    near = np.zeros((SIZE, SIZE), np.bool_)
    for thing in scene.things:
        reach = 1.15 * thing.radius + 12
        rows, columns = (slice(max(0, int(c - reach)), int(c + reach) + 2) for c in (thing.y, thing.x))
        near[rows, columns] = True
    assert np.array_equal(picture[~near], bare[~near])
    for thing, mask in zip(scene.things, truth.masks, strict=True):
        inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        pixels = picture[inside].astype(np.float32)
        colour = np.asarray(COLOURS[thing.colour], np.float32)
        cosine = pixels @ colour / np.linalg.norm(pixels, axis=1) / np.linalg.norm(colour)
        assert cosine.min() > 0.99, thing


@pytest.mark.parametrize("seed", SEEDS)
def test_edges_are_where_labels_change(seed: int) -> None:
    truth = ground_truth(seeded_scene(seed))
    labels, edges = truth.labels.astype(int), truth.edges > 0
    wanted = np.zeros_like(edges)
    for axis in (0, 1):
        step = np.diff(labels, axis=axis)
        ahead, behind = ((slice(1, None), slice(None)), (slice(None, -1), slice(None)))
        if axis:
            ahead, behind = ahead[::-1], behind[::-1]
        wanted[ahead] |= step > 0
        wanted[behind] |= step < 0
    assert np.array_equal(edges, wanted)


@pytest.mark.parametrize(
    ("shape", "area", "tolerance"),
    [
        ("circle", np.pi * 0.9**2, 0.01),
        ("square", 1.56**2, 0.02),
        ("ring", np.pi * (0.94**2 - 0.46**2), 0.01),
        ("triangle", 3 * np.sqrt(3) / 4 * 1.1**2, 0.02),
        ("cross", 2 * 1.84 * 0.6 - 0.36, 0.02),
    ],
)
def test_areas_are_those_of_the_figures(shape: str, area: float, tolerance: float) -> None:
    scene = lone(shape, tilt=0.1)
    assert ground_truth(scene).masks.sum() == pytest.approx(area * 21.0**2, rel=tolerance)


def test_centre_and_tilt() -> None:
    rows, columns = np.nonzero(ground_truth(lone("circle")).masks[0])
    assert columns.mean() == pytest.approx(61.3, abs=0.1) and rows.mean() == pytest.approx(66.8, abs=0.1)
    upright, tilted = (ground_truth(lone("square", tilt=tilt)).boxes[0] for tilt in (0.0, 0.12))
    assert tilted[2] - tilted[0] > upright[2] - upright[0]


def test_nearer_objects_cover_farther_ones() -> None:
    far, near = (lone("circle", colour=colour).things[0] for colour in ("red", "blue"))
    near = dataclasses.replace(near, x=far.x + 25)
    scene = Scene((far, near), "white", "plain", 0)
    truth = ground_truth(scene)
    assert truth.masks[1].sum() > truth.masks[0].sum() > 0
    red, green, blue = (int(value) for value in render(scene)[round(near.y), round(near.x) - 14])
    assert blue > 2 * red and blue > green


def test_relations() -> None:
    first, second = lone("circle", x=30.0).things[0], lone("star", x=90.0).things[0]
    assert relation(first, second) == "left of" and relation(second, first) == "right of"
    above, below = dataclasses.replace(first, x=60.0, y=30.0), dataclasses.replace(first, x=60.0, y=90.0)
    assert relation(above, below) == "above" and relation(below, above) == "below"
    assert relation(first, dataclasses.replace(first, x=first.x + 20)) is None
    assert relation(first, dataclasses.replace(first, x=first.x + 50, y=first.y + 45)) is None
