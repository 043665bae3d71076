"""The judge itself: right on rendered ground truth, near chance on the wrong pictures, red when the picture is wrong."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

import bridle_eval  # noqa: F401
from bridle_eval.claims import counting_accuracy, exact_accuracy, object_accuracy, relation_accuracy
from bridle_eval.objects import detect, kinds
from bridle_eval.outlines import canny_edges, edge_f1, segmentation_iou
from bridle_eval.placement import box_iou, placement_iou, pointing_chance, pointing_hit, share_in_box
from bridle_eval.preservation import layout_diversity, preservation
from captions import Claim
from controls import canny_hint
from held_out import Case, held_out_case
from measures import MEASURES, score_row
from rows import rendered, shuffled
from world import SIZE, ByteImage, Scene, Thing, ground_truth, render, seeded_scene

CHANCE = {
    "objects": 0.08,
    "counting": 0.40,
    "exact": 0.03,
    "relation": 0.03,
    "background": 0.27,
    "placement IoU": 0.03,
    "edge F1": 0.2,
    "mask IoU": 0.04,
    "sketch F1": 0.15,
}
"""What the wrong scene's picture may score at most: 1 of 64 kinds by luck, the count in 0.3 of all pairs (the sum of the
squared shares of 1 to 4), the background in 1 of 8; the rest is accidental overlap."""


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [held_out_case(index) for index in range(100)]


def scene(*things: Thing, background: str = "white") -> Scene:
    return Scene(things, background, "plain", 0)


def thing(colour: str, shape: str, x: float, y: float, radius: float = 18.0, **more: object) -> Thing:
    return Thing(shape, colour, "", x, y, radius, **more)


RED = thing("red", "circle", 34.0, 60.0)
BLUE = thing("blue", "star", 92.0, 64.0)
PAIR = Claim(((RED.kind, 1), (BLUE.kind, 1)), (RED.kind, "left of", BLUE.kind))


def test_ground_truth_scores_at_least_098(cases: list[Case]) -> None:
    scores = score_row(cases, rendered(cases))
    assert set(scores) == set(MEASURES)
    for name, score in scores.items():
        assert score.mean >= 0.98, (name, score)


@pytest.mark.parametrize(
    "hard",
    [
        lambda case: any(item.outlined for item in case.scene.things),
        lambda case: any(abs(item.tilt) > 0.1 for item in case.scene.things),
        lambda case: len(case.scene.things) == 4,
        lambda case: len(case.scene.things) > 1 and len({item.kind for item in case.scene.things}) == 1,
        lambda case: case.scene.background == "black",
        lambda case: case.scene.texture in ("striped", "dotted", "speckled"),
    ],
    ids=["outlined", "tilted", "crowded", "alike", "black background", "textured"],
)
def test_hard_scenes_score_as_high(hard: object) -> None:
    chosen = [case for case in map(held_out_case, range(1000, 1250)) if hard(case)][:24]
    assert len(chosen) >= 12
    for name, score in score_row(chosen, rendered(chosen)).items():
        assert score.mean >= 0.98, (name, score)


def test_wrong_pictures_score_near_chance(cases: list[Case]) -> None:
    scores = score_row(cases, shuffled(cases))
    for name, score in scores.items():
        assert score.mean <= CHANCE[name], (name, score)


def test_a_slight_blur_changes_little(cases: list[Case]) -> None:
    blurred = [cv2.GaussianBlur(case.picture, (0, 0), 1.2) for case in cases]
    scores = score_row(cases, blurred)
    for name in ("objects", "counting", "relation", "background", "sketch F1"):
        assert scores[name].mean >= 0.95, (name, scores[name])
    assert scores["edge F1"].mean >= 0.9 and scores["mask IoU"].mean >= 0.9


def test_masks_and_boxes_of_detected_objects() -> None:
    for seed in range(40):
        drawn = seeded_scene(seed)
        truth, found = ground_truth(drawn), detect(render(drawn))
        for item, box, mask in zip(drawn.things, truth.boxes, truth.masks, strict=True):
            (best,) = sorted(
                (other for other in found if other.kind == item.kind), key=lambda other: -(other.mask & mask).sum()
            )[:1]
            assert (best.mask & mask).sum() / (best.mask | mask).sum() > 0.9
            assert max(abs(a - b) for a, b in zip(best.box, box, strict=True)) <= 3


def test_touching_objects_of_one_colour_are_told_apart() -> None:
    pair = scene(thing("green", "heart", 50.0, 60.0), thing("green", "cross", 80.0, 60.0))
    picture = render(pair)
    assert kinds(detect(picture)) == {("green", "heart"): 1, ("green", "cross"): 1}


def test_nothing_is_found_in_backgrounds_and_blobs() -> None:
    for seed in range(30):
        assert detect(render(dataclasses.replace(seeded_scene(seed), things=()))) == []
    blob = render(scene())
    cv2.rectangle(blob, (40, 30), (56, 100), (218, 38, 42), -1)
    assert [item.shape for item in detect(blob)] == [""]


def test_claims_fail_when_the_picture_is_wrong() -> None:
    good = detect(render(scene(RED, BLUE)))
    assert (object_accuracy(PAIR, good), counting_accuracy(PAIR, good), exact_accuracy(PAIR, good)) == (1, 1, 1)
    assert relation_accuracy(PAIR, good) == 1
    one = detect(render(scene(RED)))
    assert (object_accuracy(PAIR, one), counting_accuracy(PAIR, one), exact_accuracy(PAIR, one)) == (0.5, 0, 0)
    assert relation_accuracy(PAIR, one) == 0
    swapped = detect(render(scene(dataclasses.replace(RED, x=BLUE.x), dataclasses.replace(BLUE, x=RED.x))))
    assert exact_accuracy(PAIR, swapped) == 1 and relation_accuracy(PAIR, swapped) == 0
    crossed = detect(render(scene(dataclasses.replace(RED, colour="blue"), dataclasses.replace(BLUE, colour="red"))))
    assert (object_accuracy(PAIR, crossed), counting_accuracy(PAIR, crossed)) == (0, 1)
    extra = detect(render(scene(RED, BLUE, thing("red", "circle", 60.0, 22.0, 13.0))))
    assert (object_accuracy(PAIR, extra), counting_accuracy(PAIR, extra), exact_accuracy(PAIR, extra)) == (1, 0, 0)
    assert relation_accuracy(Claim(PAIR.counts), good) is None


@pytest.mark.parametrize("stated", ["left of", "right of", "above", "below"])
def test_relations_hold_one_way_only(cases: list[Case], stated: str) -> None:
    claims = [(case, case.caption.claim) for case in map(held_out_case, range(400, 700)) if case.caption.claim.relation]
    chosen = [(case, claim) for case, claim in claims if claim.relation[1] == stated]
    assert len(chosen) >= 5
    for case, claim in chosen:
        found = detect(case.picture)
        first, _, second = claim.relation
        verdicts = {
            word: relation_accuracy(dataclasses.replace(claim, relation=(first, word, second)), found)
            for word in ("left of", "right of", "above", "below")
        }
        assert verdicts == {word: float(word == stated) for word in verdicts}


def test_edge_f1_tolerance() -> None:
    square = np.zeros((64, 64), np.uint8)
    cv2.rectangle(square, (16, 16), (48, 48), 255, 1)
    edges = square > 0
    shifted = {step: edge_f1(np.roll(edges, (step, step), (0, 1)), edges) for step in (0, 1, 2, 4)}
    assert shifted[0] == shifted[1] == 1
    assert 1 > shifted[2] > shifted[4] > 0
    assert (
        edge_f1(np.roll(edges, 2, 0), edges, tolerance=2.0) == 1 > edge_f1(np.roll(edges, 3, 0), edges, tolerance=2.0)
    )
    empty = np.zeros_like(edges)
    assert edge_f1(empty, empty) == 1 and edge_f1(empty, edges) == edge_f1(edges, empty) == 0
    half = edges.copy()
    half[32:] = False
    assert edge_f1(half, edges) == edge_f1(edges, half) < 0.8


def test_canny_is_the_control_of_the_model() -> None:
    for seed in range(20):
        drawn = seeded_scene(seed)
        picture = render(drawn)
        assert np.array_equal(canny_edges(picture), canny_hint(drawn, picture)[:, :, 0] > 0)


def test_segmentation_needs_the_right_colour_in_the_right_place() -> None:
    wanted = np.zeros((SIZE, SIZE, 3), np.uint8)
    for item, mask in zip((RED, BLUE), ground_truth(scene(RED, BLUE)).masks, strict=True):
        wanted[mask] = {"red": (218, 38, 42), "blue": (36, 82, 214)}[item.colour]
    assert segmentation_iou(render(scene(RED, BLUE)), wanted) > 0.98
    assert segmentation_iou(render(scene(RED)), wanted) == pytest.approx(0.5, abs=0.02)
    swapped = scene(dataclasses.replace(RED, colour="blue"), dataclasses.replace(BLUE, colour="red"))
    assert segmentation_iou(render(swapped), wanted) == 0
    moved = scene(dataclasses.replace(RED, x=RED.x + 9), BLUE)
    assert 0.68 < segmentation_iou(render(moved), wanted) < 0.78


def test_boxes_and_regions() -> None:
    assert box_iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1 and box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    found = detect(render(scene(RED, BLUE)))
    box = ground_truth(scene(RED, BLUE)).boxes[0]
    assert placement_iou(found, RED.kind, box) > 0.9
    assert placement_iou(found, BLUE.kind, box) == placement_iou(found, ("green", "circle"), box) == 0
    left, right = (0.0, 0.0, 64.0, 128.0), (64.0, 0.0, 128.0, 128.0)
    assert share_in_box(found, RED.kind, left) == 1 and share_in_box(found, RED.kind, right) == 0
    assert share_in_box(found, RED.kind, (0.0, 0.0, RED.x, 128.0)) == pytest.approx(0.5, abs=0.04)
    assert share_in_box(found, ("green", "circle"), left) == 0


def test_pointing_game() -> None:
    rng = np.random.default_rng(5)
    hits, chances = [], []
    for seed in range(60):
        drawn = seeded_scene(seed)
        mask = ground_truth(drawn).masks[0]
        rows, columns = np.mgrid[0:16, 0:16]
        row, column = (np.argwhere(mask)[mask.sum() // 2] + 0.5) / 8 - 0.5
        heat = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4)
        assert pointing_hit(heat, mask) and not pointing_hit(heat, np.roll(mask, SIZE // 2, axis=1), tolerance=2.0)
        hits += [pointing_hit(rng.random((16, 16)), mask) for _ in range(20)]
        chances.append(pointing_chance(mask))
    assert np.mean(hits) == pytest.approx(np.mean(chances), abs=0.05) and np.mean(chances) < 0.4
    assert not pointing_hit(np.ones((16, 16)), np.zeros((SIZE, SIZE), np.bool_))


def test_preservation_of_what_an_edit_leaves_alone() -> None:
    before = render(scene(RED, BLUE))
    edited = preservation(before, render(scene(RED, dataclasses.replace(BLUE, colour="pink"))), RED.kind)
    assert edited.iou > 0.98 and edited.colour_distance < 1
    moved = preservation(before, render(scene(dataclasses.replace(RED, y=RED.y + 20), BLUE)), RED.kind)
    assert moved.iou < 0.5
    gone = preservation(before, render(scene(BLUE)), RED.kind)
    assert gone.iou == 0 and gone.colour_distance > 40
    recoloured = preservation(before, render(scene(dataclasses.replace(RED, colour="orange"), BLUE)), RED.kind)
    assert recoloured.iou == 0 and recoloured.colour_distance > 25
    assert preservation(before, before, ("green", "circle")) is None


def test_diversity() -> None:
    pictures: list[ByteImage] = [render(seeded_scene(seed)) for seed in range(8)]
    assert layout_diversity([pictures[0]] * 4) == 0
    assert layout_diversity(pictures) > 0.8
    nudged = [render(scene(dataclasses.replace(RED, x=RED.x + step), BLUE)) for step in (0.0, 3.0, 6.0)]
    assert 0 < layout_diversity(nudged) < 0.3
