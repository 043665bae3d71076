"""Captions say nothing false, and each of their words is one token."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from captions import NUMBERS, Caption, describe, vocabulary
from shapes import SHAPES
from tokenizer import build_tokenizer
from world import BACKGROUNDS, COLOURS, SIZE, TEXTURES, Scene, seeded_scene

SEEDS = range(7000, 7400)
NAMED = re.compile(rf"(\w+) (?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:es|s)?\b")
PLACE = re.compile(r"(?:at|in) the ((?:top|bottom|left|right|center| )+)")


def captioned(seed: int) -> list[tuple[Scene, Caption]]:
    scene, rng = seeded_scene(seed), np.random.default_rng(seed)
    return [(scene, describe(scene, rng)) for _ in range(4)]


@pytest.fixture(scope="module")
def cases() -> list[tuple[Scene, Caption]]:
    return [case for seed in SEEDS for case in captioned(seed)]


def test_words_name_the_objects_of_the_scene(cases: list[tuple[Scene, Caption]]) -> None:
    numbers = {"a": 1, "an": 1} | {word: number for number, word in NUMBERS.items()}
    for scene, caption in cases:
        told: Counter[tuple[str, str]] = Counter()
        for number, _, colour, shape in NAMED.findall(caption.text):
            told[colour, shape] += numbers[number]
        there = Counter(thing.kind for thing in scene.things)
        assert told == there == dict(caption.claim.counts), caption.text


def test_sizes_are_true(cases: list[tuple[Scene, Caption]]) -> None:
    seen = 0
    for scene, caption in cases:
        for _, size, colour, shape in NAMED.findall(caption.text):
            if size:
                seen += 1
                assert size in {thing.size for thing in scene.things if thing.kind == (colour, shape)}, caption.text
    assert seen > 100


def test_relations_are_true(cases: list[tuple[Scene, Caption]]) -> None:
    seen: Counter[str] = Counter()
    for scene, caption in cases:
        if caption.claim.relation is None:
            assert not re.search("left of|right of|above|below", caption.text)
            continue
        first, stated, second = caption.claim.relation
        assert re.search(rf"{' '.join(first)} {stated} an? (\w+ )?{' '.join(second)}", caption.text)
        (one,), (other,) = ([t for t in scene.things if t.kind == kind] for kind in (first, second))
        ahead = {
            "left of": other.x - one.x,
            "right of": one.x - other.x,
            "above": other.y - one.y,
            "below": one.y - other.y,
        }
        assert ahead[stated] >= 30
        seen[stated] += 1
    assert len(seen) == 4 and min(seen.values()) > 20


def test_places_and_backgrounds_are_true(cases: list[tuple[Scene, Caption]]) -> None:
    places = backgrounds = 0
    for scene, caption in cases:
        match = PLACE.search(caption.text)
        if match:
            places += 1
            words, thing = match[1].split(), scene.things[0]
            assert ("left" in words) == (thing.x < SIZE / 3) and ("right" in words) == (thing.x >= 2 * SIZE / 3)
            assert ("top" in words) == (thing.y < SIZE / 3) and ("bottom" in words) == (thing.y >= 2 * SIZE / 3)
        ending = re.search(r"(?:on|with) a (\w+ )?(\w+) background", caption.text)
        assert (ending[2] if ending else None) == caption.claim.background
        if ending:
            backgrounds += 1
            assert ending[2] == scene.background in BACKGROUNDS
            assert ending[1] is None or ending[1].strip() == scene.texture in TEXTURES
    assert places > 100 and backgrounds > 500


def test_every_word_is_one_token(cases: list[tuple[Scene, Caption]]) -> None:
    tokenizer = build_tokenizer()
    known = set(vocabulary())
    for _, caption in cases:
        words = caption.text.replace(",", " ,").split()
        assert set(words) <= known
        ids = tokenizer(caption.text).input_ids
        assert len(ids) == len(words) + 2, caption.text
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    tokens = {tuple(tokenizer(word).input_ids) for word in known}
    assert len(tokens) == len(known)


def test_other_words_are_spelt_in_bytes() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("zebra ☃").input_ids[1:-1]
    assert len(ids) > 2 and max(ids) < 512 + len(tokenizer) and tokenizer.decode(ids) == "zebra ☃"


def test_saved_tokenizer_gives_the_same_ids(tmp_path: Path, cases: list[tuple[Scene, Caption]]) -> None:
    from bridle.weights.tokenizers import read_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded, ours = CLIPTokenizer.from_pretrained(tmp_path), read_tokenizer(tmp_path, "tokenizer")
    for _, caption in cases[:100]:
        assert tokenizer(caption.text).input_ids == loaded(caption.text).input_ids == ours(caption.text).input_ids
