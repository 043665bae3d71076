"""Chunks, tokens, word positions and weights."""

import threading

import numpy as np
import pytest
import torch
from tiny_tokenizer import tiny_tokenizer
from transformers import CLIPTokenizer

from bridle.errors import LimitError, RequestError
from bridle.prompts import MAX_CHARACTERS, PromptTokens, apply_weights, token_positions, tokenize_prompt

TOKENIZER = tiny_tokenizer()
TEXTS = [
    "",
    " ",
    "a",
    "a red cat, sitting",
    "Straße ÄÖ 東京 42!",
    "  many   spaces\n\tand\x00nul ",
    "\u202eright to left\u200f",
    "👩‍👩‍👧‍👦",
    "e" + "\u0301" * 30,
    "don't 'quote' it's",
    "<|startofte",
    "back\\slash",
]


def as_diffusers(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """The call that diffusers' pipelines make."""
    found = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="np")
    return [int(token) for token in found.input_ids[0]]


def content(tokens: PromptTokens) -> list[list[int]]:
    return [row[1 : 1 + length].tolist() for row, length in zip(tokens.ids, tokens.lengths, strict=True)]


def words(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("syntax", ["a1111", "plain"])
def test_short_prompts_give_the_ids_of_diffusers(text: str, pad: str, syntax: str) -> None:
    tokenizer = tiny_tokenizer(pad)
    tokens = tokenize_prompt(tokenizer, text, syntax)
    assert tokens.ids.tolist() == [as_diffusers(tokenizer, text)]
    assert (tokens.weights == 1).all()
    assert tokens.weights.dtype == np.float32
    assert tokens.ids.dtype == np.int64


@pytest.mark.parametrize(
    ("count", "chunks"), [(1, 1), (75, 1), (76, 2), (77, 2), (78, 2), (150, 2), (231, 4), (232, 4)]
)
def test_long_prompts_fill_chunks(count: int, chunks: int) -> None:
    tokens = tokenize_prompt(TOKENIZER, "cat " * count)
    assert tokens.ids.shape == tokens.weights.shape == (chunks, 77)
    assert sum(tokens.lengths) == count
    assert all(length == 75 for length in tokens.lengths[:-1])
    for row, length in zip(tokens.ids, tokens.lengths, strict=True):
        assert row[0] == TOKENIZER.bos_token_id
        assert (row[length + 1 :] == TOKENIZER.eos_token_id).all()
    assert content(tokens) == [words("cat " * length) for length in tokens.lengths]


def test_padding_follows_the_end_marker() -> None:
    tokenizer = tiny_tokenizer("!")
    row = tokenize_prompt(tokenizer, "red cat").ids[0]
    assert row[3] == tokenizer.eos_token_id
    assert (row[4:] == tokenizer.pad_token_id).all()


def test_plain_syntax_takes_brackets_as_text() -> None:
    tokens = tokenize_prompt(TOKENIZER, "a (red:1.5) cat BREAK", "plain")
    assert content(tokens) == [words("a (red:1.5) cat BREAK")]
    assert (tokens.weights == 1).all()


def test_weights_sit_at_their_tokens() -> None:
    tokens = tokenize_prompt(TOKENIZER, "a (red:1.5) [cat]")
    assert content(tokens) == [words("a red cat")]
    expected = np.ones(77, dtype=np.float32)
    expected[2:4] = 1.5, 1 / 1.1
    np.testing.assert_allclose(tokens.weights[0], expected, rtol=1e-6)


def test_break_starts_a_chunk() -> None:
    tokens = tokenize_prompt(TOKENIZER, "red BREAK cat BREAK")
    assert content(tokens) == [words("red"), words("cat")]
    assert content(tokenize_prompt(TOKENIZER, "BREAK cat")) == [[], words("cat")]


@pytest.mark.parametrize("comma_at", [0, 53, 54, 55, 60, 73, 74])
def test_a_late_comma_keeps_its_phrase_together(comma_at: int) -> None:
    """The comma is token `comma_at` of the chunk; at 20 tokens or fewer before the cut, the chunk ends there."""
    prompt = "cat " * comma_at + ", " + "dog " * (90 - comma_at)
    first = tokenize_prompt(TOKENIZER, prompt).lengths[0]
    assert first == (comma_at + 1 if 75 - comma_at <= 20 else 75)


def test_a_comma_is_not_carried_over() -> None:
    """A chunk without a comma of its own is cut where it is full."""
    tokens = tokenize_prompt(TOKENIZER, "cat " * 74 + ", " + "dog " * 100)
    assert tokens.lengths == (75, 75, 25)


def test_moved_tokens_keep_their_weights() -> None:
    tokens = tokenize_prompt(TOKENIZER, "cat " * 70 + ", (" + "dog " * 30 + ":1.5)")
    assert tokens.lengths == (71, 30)
    assert tokens.weights[1, 1:31].tolist() == [1.5] * 30
    assert (tokens.weights[0] == 1).all()


@pytest.mark.parametrize("marker", ["<|endoftext|>", "<|startoftext|>"])
def test_markers_in_a_prompt_are_text(marker: str) -> None:
    tokens = tokenize_prompt(TOKENIZER, f"red {marker} cat")
    row = tokens.ids[0]
    assert (row == TOKENIZER.bos_token_id).sum() == 1
    assert row.tolist().index(TOKENIZER.eos_token_id) == tokens.lengths[0] + 1
    assert token_positions(TOKENIZER, tokens, "cat") == ((tokens.lengths[0],),)


def test_word_positions() -> None:
    tokens = tokenize_prompt(TOKENIZER, "a (red:1.5) cat, bird BREAK red dog")
    assert token_positions(TOKENIZER, tokens, "red") == ((2,), (78,))
    assert token_positions(TOKENIZER, tokens, "Red Cat") == ((2, 3),)
    assert token_positions(TOKENIZER, tokens, "bird") == ((5, 6, 7, 8),)
    for row in token_positions(TOKENIZER, tokens, "dog"):
        assert tokens.ids.reshape(-1)[list(row)].tolist() == words("dog")


@pytest.mark.parametrize("word", ["bir", "", "catt", "<|endoftext|>", "\ud800", 7])
def test_words_that_are_not_there(word: str) -> None:
    tokens = tokenize_prompt(TOKENIZER, "a cat, bird")
    with pytest.raises(RequestError) as caught:
        token_positions(TOKENIZER, tokens, word)
    assert caught.value.field == "word"
    assert str(caught.value).isprintable()


def test_the_error_lists_the_tokens() -> None:
    with pytest.raises(RequestError, match="cat</w>"):
        token_positions(TOKENIZER, tokenize_prompt(TOKENIZER, "a cat"), "dog")


def test_unit_weights_keep_every_bit() -> None:
    hidden = torch.randn(2, 77, 5, generator=torch.Generator().manual_seed(1))
    weights = torch.ones(2, 77)
    assert torch.equal(apply_weights(hidden, weights), hidden)
    weights[1, 3] = 1.4
    weighted = apply_weights(hidden, weights)
    assert torch.equal(weighted[0], hidden[0])
    assert not torch.equal(weighted[1], hidden[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_keep_the_mean_of_each_chunk(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(2)
    hidden = (torch.randn(3, 77, 6, generator=random) + 0.3).to(dtype)
    weights = 0.5 + torch.rand(3, 77, generator=random)
    weighted = apply_weights(hidden, weights)
    assert weighted.dtype == dtype
    torch.testing.assert_close(weighted.float().mean((1, 2)), hidden.float().mean((1, 2)), rtol=1e-2, atol=1e-3)
    ratio = weighted.double() / (hidden.double() * weights[:, :, None])
    torch.testing.assert_close(ratio / ratio[:, :1, :1], torch.ones_like(ratio), rtol=2e-2, atol=2e-2)


def test_a_mean_of_zero_stays_finite() -> None:
    hidden = torch.randn(1, 77, 4)
    assert torch.isfinite(apply_weights(hidden, torch.zeros(1, 77))).all()


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("x" * (MAX_CHARACTERS + 1), LimitError),
        ("x" * 2**20, LimitError),
        ("(" * 10**6, LimitError),
        ("cat " * 8000, LimitError),
        ("BREAK " * 70, LimitError),
        ("\ud800", RequestError),
        (b"cat", RequestError),
        (None, RequestError),
        (["cat"], RequestError),
        ("(a:nan)", RequestError),
    ],
    ids=[str(i) for i in range(10)],
)
def test_bad_prompts(prompt: str, error: type[RequestError]) -> None:
    with pytest.raises(error) as caught:
        tokenize_prompt(TOKENIZER, prompt, field="negative_prompt")
    assert caught.value.field == "negative_prompt"
    assert len(str(caught.value)) <= 512
    assert str(caught.value).isprintable()


def test_unknown_syntax() -> None:
    with pytest.raises(RequestError) as caught:
        tokenize_prompt(TOKENIZER, "cat", "comfy")
    assert caught.value.field == "prompt_syntax"


def test_one_tokenizer_in_many_threads() -> None:
    expected = tokenize_prompt(TOKENIZER, "red (cat:1.2) <|endoftext|>").ids.tolist()
    wrong: list[object] = []

    def work() -> None:
        for _ in range(30):
            try:
                if tokenize_prompt(TOKENIZER, "red (cat:1.2) <|endoftext|>").ids.tolist() != expected:
                    wrong.append("other ids")
            except RuntimeError as problem:
                wrong.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
