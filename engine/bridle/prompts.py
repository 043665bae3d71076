"""Prompts -> token ids and weights in chunks of 77, as A1111 divides them; and the weights' effect on text features."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.errors import LimitError, RequestError
from bridle.prompt_chunks import CHUNK, Chunks
from bridle.prompt_syntax import Segment, parse_prompt

MAX_CHARACTERS = 32768
_WORD_END = "</w>"
_TOKENIZER_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class PromptTokens:
    """A prompt in n chunks: BOS, up to 75 tokens, EOS, padding.

    ids: int64 [n, 77]. weights: float32 [n, 77], 1 at BOS, EOS and padding. lengths: tokens between BOS and EOS per
    chunk. All read-only.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    lengths: tuple[int, ...]


def tokenize_prompt(tokenizer: Any, prompt: str, syntax: str = "a1111", field: str = "prompt") -> PromptTokens:
    """Token ids and weights of a prompt.

    tokenizer: a CLIPTokenizer. syntax: "a1111" (see `prompt_syntax`) or "plain", which takes every character as text.
    A prompt of up to 75 tokens without syntax gives exactly the ids that diffusers' pipelines use; markers such as
    <|endoftext|> are text like any other. Longer prompts fill further chunks; BREAK starts one.
    Raises RequestError, or LimitError beyond 32768 characters or 64 chunks; `field` is the name they carry.
    """
    _check_text(prompt, field)
    if syntax not in ("a1111", "plain"):
        raise RequestError("prompt_syntax", syntax, "'a1111' or 'plain'")
    groups = parse_prompt(prompt, field) if syntax == "a1111" else ((Segment(prompt, 1.0),),)
    texts = [segment.text for group in groups for segment in group]
    ids = iter(_token_ids(tokenizer, texts))
    chunks = Chunks(tokenizer.convert_tokens_to_ids(",</w>"), field)
    for i, group in enumerate(groups):
        if i > 0:
            chunks.close()
        for segment in group:
            chunks.extend(next(ids), segment.weight)
    return _framed(chunks.finish(), tokenizer)


def with_chunks(tokenizer: Any, tokens: PromptTokens, count: int) -> PromptTokens:
    """The prompt followed by empty chunks (BOS, EOS, padding) up to `count`, so that two contexts have one length.

    Raises ValueError if the prompt has more chunks than that.
    """
    missing = count - len(tokens.lengths)
    if missing < 0:
        raise ValueError(f"with_chunks: the prompt has {len(tokens.lengths)} chunks, wanted {count}")
    empty = _framed([([], [])] * missing, tokenizer)
    ids, weights = np.concatenate([tokens.ids, empty.ids]), np.concatenate([tokens.weights, empty.weights])
    return _read_only(ids, weights, tokens.lengths + empty.lengths)


def word_columns(
    tokenizer: Any, tokens: PromptTokens, words: Sequence[str], field: str = "words"
) -> dict[str, tuple[int, ...]]:
    """Columns of each word or phrase in the context of n * 77 tokens: those of all its occurrences, ascending.

    Words are compared as the tokenizer reads them: without regard to case, as whole words, several tokens each where
    it splits them. SDXL's two tokenizers agree on the columns, except behind a run of "!": one that pads with "!" never
    joins it into one token.
    Raises RequestError("field[i]") for a word that is not in the prompt.
    """
    if isinstance(words, str) or len(words) == 0:
        raise RequestError(field, words, "a list of words")
    columns = {}
    for i, word in enumerate(words):
        occurrences = token_positions(tokenizer, tokens, word, f"{field}[{i}]")
        columns[word] = tuple(sorted({column for occurrence in occurrences for column in occurrence}))
    return columns


def token_positions(
    tokenizer: Any, tokens: PromptTokens, word: str, field: str = "word"
) -> tuple[tuple[int, ...], ...]:
    """Where a word, or several words, stand in the prompt: one tuple per occurrence, of indices into its n * 77 tokens.

    A word that the tokenizer splits has several indices; the end of a longer word is no occurrence. Raises
    RequestError(field) if it does not occur.
    """
    _check_text(word, field)
    wanted = _token_ids(tokenizer, [word])[0]
    places = content_columns(tokens)
    present = tokens.ids.reshape(-1)[places].tolist()
    firsts = {columns[0] for columns in prompt_words(tokenizer, tokens)}
    starts = range(len(present) - len(wanted) + 1) if wanted else ()
    found = [i for i in starts if places[i] in firsts and present[i : i + len(wanted)] == wanted]
    if not found:
        shown = " ".join(tokenizer.convert_ids_to_tokens(present[:75]))
        raise RequestError(field, word, f"a word of the prompt; its tokens are: {ascii(shown)[1:-1]}")
    return tuple(tuple(places[i : i + len(wanted)]) for i in found)


def prompt_words(tokenizer: Any, tokens: PromptTokens) -> tuple[tuple[int, ...], ...]:
    """The prompt's words in order, as the tokenizer divides it: letters, single digits, runs of punctuation.

    Each is a tuple of indices into the n * 77 tokens.
    """
    places = content_columns(tokens)
    ids = tokens.ids.reshape(-1)[places].tolist()
    words: list[list[int]] = [[]]
    for place, token, name in zip(places, ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        words[-1].append(place)
        if name.endswith(_WORD_END) or token == tokenizer.pad_token_id:
            words.append([])
    return tuple(tuple(word) for word in words if word)


def content_columns(tokens: PromptTokens) -> list[int]:
    """Indices, among the n * 77 tokens, of those between BOS and EOS of every chunk."""
    return [chunk * CHUNK + 1 + i for chunk, length in enumerate(tokens.lengths) for i in range(length)]


def apply_weights(hidden: Tensor, weights: Tensor) -> Tensor:
    """Text features scaled per token, each chunk then rescaled to its old mean, as A1111 does.

    hidden: [n, 77, D], any float dtype. weights: [n, 77]. Chunks whose weights are all 1 keep their bits.
    """
    if bool((weights == 1).all()):
        return hidden
    exact = hidden.float()
    scaled = exact * weights.to(exact)[:, :, None]
    mean = exact.mean(dim=(1, 2), keepdim=True)
    factor = mean / scaled.mean(dim=(1, 2), keepdim=True)
    restored = scaled * torch.where(factor.isfinite(), factor, torch.ones_like(factor))
    changed = (weights != 1).any(dim=1)[:, None, None].to(hidden.device)
    return torch.where(changed, restored.to(hidden.dtype), hidden)


def _check_text(text: object, field: str) -> None:
    if not isinstance(text, str):
        raise RequestError(field, text, "a string")
    if len(text) > MAX_CHARACTERS:
        raise LimitError(field, f"{len(text)} characters", f"at most {MAX_CHARACTERS} characters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(field, text, "text without lone surrogates") from None


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids without BOS and EOS, each text on its own.

    Only texts that contain a marker are told to read it as text: SD 2.x's padding token "!" is a marker too, which
    diffusers' pipelines do recognise in a prompt.
    """
    markers = (tokenizer.bos_token, tokenizer.eos_token)
    marked = [any(marker in text for marker in markers) for text in texts]
    found: list[list[int]] = [[] for _ in texts]
    for split in (False, True):
        places = [i for i, value in enumerate(marked) if value is split]
        for i, ids in zip(places, _call(tokenizer, [texts[i] for i in places], split), strict=True):
            found[i] = ids
    return found


def _call(tokenizer: Any, texts: list[str], split_special_tokens: bool) -> list[list[int]]:
    """One call at a time: a fast tokenizer does not allow two that change its settings."""
    if not texts:
        return []
    with _TOKENIZER_LOCK:
        found = tokenizer(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            verbose=False,
        )
    return [list(ids) for ids in found["input_ids"]]


def _framed(chunks: list[tuple[list[int], list[float]]], tokenizer: Any) -> PromptTokens:
    """Chunks with BOS, EOS and padding."""
    ids = np.full((len(chunks), CHUNK), tokenizer.pad_token_id, dtype=np.int64)
    weights = np.ones((len(chunks), CHUNK), dtype=np.float32)
    for i, (tokens, factors) in enumerate(chunks):
        end = len(tokens) + 1
        ids[i, 0] = tokenizer.bos_token_id
        ids[i, 1:end] = tokens
        ids[i, end] = tokenizer.eos_token_id
        weights[i, 1:end] = factors
    return _read_only(ids, weights, tuple(len(tokens) for tokens, _ in chunks))


def _read_only(ids: NDArray[np.int64], weights: NDArray[np.float32], lengths: tuple[int, ...]) -> PromptTokens:
    ids.setflags(write=False)
    weights.setflags(write=False)
    return PromptTokens(ids, weights, lengths)
