"""Does a picture show what its caption claims?"""

from __future__ import annotations

from bridle_eval.objects import Detected, best_of_kind, kinds
from captions import Claim, Kind


def object_accuracy(claim: Claim, found: list[Detected]) -> float:
    """Share, 0 to 1, of the claimed objects that are there in colour and shape; three claimed and two found is 2/3."""
    there = kinds(found)
    claimed = sum(count for _, count in claim.counts)
    return sum(min(there[kind], count) for kind, count in claim.counts) / claimed


def counting_accuracy(claim: Claim, found: list[Detected]) -> float:
    """1 if the picture holds as many objects as claimed, of whatever kind, else 0."""
    return float(len(found) == sum(count for _, count in claim.counts))


def exact_accuracy(claim: Claim, found: list[Detected]) -> float:
    """1 if the picture holds the claimed objects and nothing else, else 0."""
    return float(kinds(found) == dict(claim.counts))


def relation_accuracy(claim: Claim, found: list[Detected]) -> float | None:
    """1 if both objects of the claimed relation are there and stand in it, else 0; None without such a claim."""
    if claim.relation is None:
        return None
    first, stated, second = claim.relation
    return float(_stands(found, first, second) == stated)


def _stands(found: list[Detected], first: Kind, second: Kind) -> str | None:
    """The relation of two kinds along the axis on which their centres lie farther apart, or None if one is missing."""
    one, other = best_of_kind(found, first), best_of_kind(found, second)
    if one is None or other is None:
        return None
    dx, dy = other.centre[0] - one.centre[0], other.centre[1] - one.centre[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"
