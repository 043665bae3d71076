"""The weighting syntax."""

import pytest

from bridle.errors import LimitError, RequestError
from bridle.prompt_syntax import MAX_DEPTH, parse_prompt

CASES: list[tuple[str, list[list[tuple[str, float]]]]] = [
    ("", [[]]),
    ("a cat", [[("a cat", 1.0)]]),
    ("a (red) cat", [[("a ", 1.0), ("red", 1.1), (" cat", 1.0)]]),
    ("a [red] cat", [[("a ", 1.0), ("red", 1 / 1.1), (" cat", 1.0)]]),
    ("((red))", [[("red", 1.21)]]),
    ("(red:1.5)", [[("red", 1.5)]]),
    ("(red: .5 )", [[("red", 0.5)]]),
    ("(red:0)", [[("red", 0.0)]]),
    ("(red:15e-1)", [[("red", 1.5)]]),
    ("((red:1.5) cat)", [[("red", 1.65), (" cat", 1.1)]]),
    ("(a)(b)", [[("ab", 1.1)]]),
    ("(open", [[("open", 1.1)]]),
    ("[open", [[("open", 1 / 1.1)]]),
    ("closed)", [[("closed)", 1.0)]]),
    ("closed]", [[("closed]", 1.0)]]),
    ("closed:1.2)", [[("closed:1.2)", 1.0)]]),
    (r"\(a\) \[b\] \\", [[(r"(a) [b] " + "\\", 1.0)]]),
    (r"(\(a\):1.2)", [[("(a)", 1.2)]]),
    ("back\\slash", [[("back\\slash", 1.0)]]),
    ("time 12:30, (ratio 4:3)", [[("time 12:30, ", 1.0), ("ratio 4", 3.0)]]),
    ("(at 12:30pm)", [[("at 12:30pm", 1.1)]]),
    ("(a:1.2.3)", [[("a:1.2.3", 1.1)]]),
    ("(a:)", [[("a:", 1.1)]]),
    ("a ([b)] c", [[("a ", 1.0), ("b", 1.0), (" c", 1.0)]]),
    ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
    ("BREAK", [[], []]),
    ("aBREAKb", [[("aBREAKb", 1.0)]]),
    ("a, break b", [[("a, break b", 1.0)]]),
    ("(a BREAK b:1.3)", [[("a", 1.3)], [("b", 1.3)]]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            [
                *(("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55)),
                *((", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)),
            ]
        ],
    ),
    ("()", [[]]),
    ("(:1.2)", [[]]),
    ("(a:+1.2)", [[("a", 1.2)]]),
    ("((a)", [[("a", 1.21)]]),
    ("[(a:1.1)]", [[("a", 1.0)]]),
    ("a BREAK BREAK b", [[("a", 1.0)], [], [("b", 1.0)]]),
]


@pytest.mark.parametrize(("prompt", "expected"), CASES)
def test_parse(prompt: str, expected: list[list[tuple[str, float]]]) -> None:
    groups = parse_prompt(prompt)
    assert [[segment.text for segment in group] for group in groups] == [
        [text for text, _ in g] for g in merged(expected)
    ]
    for group, wanted in zip(groups, merged(expected), strict=True):
        assert [segment.weight for segment in group] == pytest.approx([weight for _, weight in wanted], rel=1e-12)


def merged(groups: list[list[tuple[str, float]]]) -> list[list[tuple[str, float]]]:
    """Neighbours of exactly equal weight as one; written apart above where that is easier to read."""
    result: list[list[tuple[str, float]]] = []
    for group in groups:
        kept: list[tuple[str, float]] = []
        for text, weight in group:
            if kept and kept[-1][1] == weight:
                kept[-1] = (kept[-1][0] + text, weight)
            else:
                kept.append((text, weight))
        result.append(kept)
    return result


@pytest.mark.parametrize("weight", ["1e999", "nan", "NaN", "inf", "-inf", "-1", "-0.5", "101", "9" * 5000])
def test_bad_weights(weight: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_prompt(f"a (cat:{weight})", "negative_prompt")
    assert caught.value.field == "negative_prompt"
    assert len(str(caught.value)) <= 512


def test_weights_multiply_up_to_the_limit() -> None:
    assert parse_prompt("((cat:10):10)")[0][0].weight == 100.0
    with pytest.raises(RequestError, match="total weight"):
        parse_prompt("((cat:11):10)")


def test_depth() -> None:
    deepest = parse_prompt("(" * MAX_DEPTH + "cat")
    assert deepest[0][0].weight == pytest.approx(1.1**MAX_DEPTH)
    for prompt in ("(" * 33, "[" * 33, "(" * 10**6, "([" * 20):
        with pytest.raises(LimitError):
            parse_prompt(prompt)


@pytest.mark.parametrize(
    "prompt",
    [":" * 10**5, "a:" * 10**5, ":" + "1" * 10**5 + "x", " " * 10**5, ": " * 10**5, "(a)" * 10**5, ")" * 10**5],
)
def test_long_inputs_parse(prompt: str) -> None:
    """Each of these takes quadratic time if a pattern backtracks over it."""
    assert len(parse_prompt(prompt)) == 1
