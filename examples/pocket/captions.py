"""Captions for scenes, together with what each caption claims.

A caption never says anything false about its scene, and the claims let a judge
check a generated picture against the words alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from shapes import SHAPES
from world import BACKGROUNDS, COLOURS, TEXTURES, Scene, Thing, region, relation

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
OPENINGS = ("", "", "", "a picture of ", "a drawing of ", "an image of ")
REGIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")

Kind = tuple[str, str]


@dataclass(frozen=True)
class Claim:
    """What a caption says: the objects by (colour, shape) and their counts, and perhaps more.

    relation: first kind, "left of" | "right of" | "above" | "below", second kind.
    """

    counts: tuple[tuple[Kind, int], ...]
    relation: tuple[Kind, str, Kind] | None = None
    background: str | None = None


@dataclass(frozen=True)
class Caption:
    """A caption and what it claims."""

    text: str
    claim: Claim


def can_relate(scene: Scene) -> bool:
    """Whether captions of the scene may say how its two objects lie to each other."""
    kinds = {thing.kind for thing in scene.things}
    return len(scene.things) == 2 and len(kinds) == 2 and relation(*scene.things) is not None


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """One of the many captions of a scene."""
    counts = tuple(Counter(thing.kind for thing in scene.things).items())
    subject, stated = _subject(scene, counts, rng)
    ending, background = _ending(scene, rng)
    opening = OPENINGS[int(rng.integers(len(OPENINGS)))]
    return Caption(opening + subject + ending, Claim(counts, stated, background))


def vocabulary() -> list[str]:
    """Every word that captions are made of, sorted."""
    words = {*COLOURS, *BACKGROUNDS, *TEXTURES, *SHAPES, *NUMBERS.values(), "small", "large"}
    words |= {_plural(shape) for shape in SHAPES}
    for phrase in (*OPENINGS, *REGIONS, "left of right of above below", "a an and on with the at in background", ","):
        words |= set(phrase.split())
    return sorted(words)


def _subject(
    scene: Scene, counts: tuple[tuple[Kind, int], ...], rng: np.random.Generator
) -> tuple[str, tuple[Kind, str, Kind] | None]:
    """The part of the caption that names the objects, and the relation it states, if any."""
    if len(scene.things) == 1:
        return _single(scene.things[0], rng), None
    if len(counts) == 2 and len(scene.things) == 2 and rng.random() < 0.8:
        first, second = _shuffled(scene.things, rng)
        stated = relation(first, second)
        if stated is not None:
            phrase = f"{_named(first, rng)} {stated} {_named(second, rng)}"
            return phrase, (first.kind, stated, second.kind)
    return _listing(scene, counts, rng), None


def _shuffled(things: tuple[Thing, ...], rng: np.random.Generator) -> list[Thing]:
    return [things[int(index)] for index in rng.permutation(len(things))]


def _single(thing: Thing, rng: np.random.Generator) -> str:
    """A lone object, in half of the cases with its place."""
    named = _named(thing, rng)
    if rng.random() < 0.5:
        return named
    place = region(thing)
    return f"{named} {'in' if place == 'center' else 'at'} the {place}"


def _named(thing: Thing, rng: np.random.Generator) -> str:
    """ "a red circle", mostly with the size word if the object has one."""
    size = thing.size if rng.random() < 0.7 else ""
    words = " ".join(word for word in (size, *thing.kind) if word)
    article = "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}"


def _listing(scene: Scene, counts: tuple[tuple[Kind, int], ...], rng: np.random.Generator) -> str:
    """ "a red circle, a blue star and a green ring", or "three red circles" for objects all alike."""
    if len(counts) == 1:
        (colour, shape), count = counts[0]
        return f"{NUMBERS[count]} {colour} {_plural(shape)}"
    names = [_named(thing, rng) for thing in _shuffled(scene.things, rng)]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _ending(scene: Scene, rng: np.random.Generator) -> tuple[str, str | None]:
    """The part of the caption about the background, and the colour it states, if any."""
    if rng.random() < 0.4:
        return "", None
    texture = f"{scene.texture} " if rng.random() < 0.4 else ""
    joint = "on" if rng.random() < 0.75 else "with"
    return f" {joint} a {texture}{scene.background} background", scene.background
