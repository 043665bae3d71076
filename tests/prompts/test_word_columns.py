"""Columns of words in a prompt's context, and prompts padded to a number of chunks."""

import numpy as np
import pytest
from tiny_tokenizer import tiny_tokenizer

from bridle.errors import RequestError
from bridle.prompts import prompt_words, token_positions, tokenize_prompt, with_chunks, word_columns

TOKENIZER = tiny_tokenizer()


def names(columns: tuple[int, ...], prompt: str) -> list[str]:
    ids = tokenize_prompt(TOKENIZER, prompt).ids.reshape(-1)
    return [TOKENIZER.convert_ids_to_tokens(int(ids[column])) for column in columns]


def test_all_occurrences_of_words_and_phrases() -> None:
    tokens = tokenize_prompt(TOKENIZER, "a red cat, a (Bird:1.3) and a RED dog")
    columns = word_columns(TOKENIZER, tokens, ["red", "BIRD", "a red", "red cat,"])
    assert list(columns) == ["red", "BIRD", "a red", "red cat,"]
    assert columns["red"] == (2, 14)
    assert columns["BIRD"] == (6, 7, 8, 9)
    assert columns["a red"] == (1, 2, 13, 14)
    assert columns["red cat,"] == (2, 3, 4)


def test_overlapping_occurrences_count_once() -> None:
    tokens = tokenize_prompt(TOKENIZER, "cat cat cat dog")
    assert word_columns(TOKENIZER, tokens, ["cat cat"])["cat cat"] == (1, 2, 3)


def test_columns_count_the_markers_of_earlier_chunks() -> None:
    tokens = tokenize_prompt(TOKENIZER, "a " * 74 + "red cat dog")
    assert tokens.lengths == (75, 2)
    assert word_columns(TOKENIZER, tokens, ["cat", "red cat"]) == {"cat": (78,), "red cat": (75, 78)}


def test_the_end_of_a_longer_word_is_not_the_word() -> None:
    """ "concat" ends with the token of "cat"."""
    prompt = "concat cat"
    tokens = tokenize_prompt(TOKENIZER, prompt)
    (columns,) = word_columns(TOKENIZER, tokens, ["cat"]).values()
    assert names((4,), prompt) == ["cat</w>"]
    assert columns == (5,)
    with pytest.raises(RequestError):
        token_positions(TOKENIZER, tokenize_prompt(TOKENIZER, "concat"), "cat")


def test_tokenizers_with_other_padding_agree() -> None:
    prompt = "a red bird! BREAK a cat! dog"
    found = []
    for tokenizer in (TOKENIZER, tiny_tokenizer("!")):
        found.append(word_columns(tokenizer, tokenize_prompt(tokenizer, prompt), ["bird", "cat", "dog"]))
    assert found[0] == found[1]
    assert found[0]["dog"] == (81,)


@pytest.mark.parametrize("word", ["zebra", "ca", "dog cat", "", "<|endoftext|>", "\ud800", 7])
def test_missing_words_are_named(word: str) -> None:
    tokens = tokenize_prompt(TOKENIZER, "a cat and a dog")
    with pytest.raises(RequestError) as caught:
        word_columns(TOKENIZER, tokens, ["cat", word], "CaptureMaps.words")
    assert caught.value.field == "CaptureMaps.words[1]"
    assert len(str(caught.value)) <= 512


def test_the_error_shows_word_and_prompt() -> None:
    with pytest.raises(RequestError, match=r"words\[0\]: got 'zebra'.*a</w> cat</w>"):
        word_columns(TOKENIZER, tokenize_prompt(TOKENIZER, "a cat"), ["zebra"])


@pytest.mark.parametrize("words", ["cat", []])
def test_words_are_a_list(words: list[str]) -> None:
    with pytest.raises(RequestError, match="a list of words"):
        word_columns(TOKENIZER, tokenize_prompt(TOKENIZER, "a cat"), words)


def test_words_of_a_prompt() -> None:
    prompt = "a bird, don't"
    found = [names(word, prompt) for word in prompt_words(TOKENIZER, tokenize_prompt(TOKENIZER, prompt))]
    assert found == [["a</w>"], ["b", "i", "r", "d</w>"], [",</w>"], ["do", "n</w>"], ["'", "t</w>"]]
    assert prompt_words(TOKENIZER, tokenize_prompt(TOKENIZER, "")) == ()


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_padding_to_chunks_appends_empty_prompts(pad: str) -> None:
    tokenizer = tiny_tokenizer(pad)
    tokens = tokenize_prompt(tokenizer, "a (cat:1.5)")
    padded = with_chunks(tokenizer, tokens, 3)
    empty = tokenize_prompt(tokenizer, "")
    np.testing.assert_array_equal(padded.ids, np.concatenate([tokens.ids, empty.ids, empty.ids]))
    np.testing.assert_array_equal(padded.weights, np.concatenate([tokens.weights, empty.weights, empty.weights]))
    assert padded.lengths == (2, 0, 0)
    assert not padded.ids.flags.writeable
    assert not padded.weights.flags.writeable
    assert word_columns(tokenizer, padded, ["cat"]) == word_columns(tokenizer, tokens, ["cat"])


def test_padding_never_drops_chunks() -> None:
    tokens = tokenize_prompt(TOKENIZER, "a BREAK cat")
    np.testing.assert_array_equal(with_chunks(TOKENIZER, tokens, 2).ids, tokens.ids)
    with pytest.raises(ValueError, match="2 chunks"):
        with_chunks(TOKENIZER, tokens, 1)
