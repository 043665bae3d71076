"""Prompt-to-prompt (arXiv 2208.01626): which token of a source prompt an edited prompt's tokens take their maps from.

The edit row's cross-attention map is `source_map @ mapper * source + own_map * own`, with the map of the source row and
the map that the edit row has by itself. Both terms are linear in a map, so values can be mixed instead of maps
(controls.md 15.1): its output is

    softmax(source scores) @ (mapper @ (source[:, None] * V)) + softmax(own scores) @ (own[:, None] * V)

with V [Le, d] the values of the edited prompt. Ls and Le are the lengths of the two contexts, 77 per chunk each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bridle.errors import RequestError
from bridle.prompt_chunks import CHUNK
from bridle.prompts import PromptTokens, content_columns, prompt_words

Window = tuple[float, float]
"""Start and end of a stretch of steps, as fractions of all steps."""


@dataclass(frozen=True, slots=True)
class Mapper:
    """How the source's map becomes the edit's: `kept * (source_map @ matrix) + (1 - kept) * own_map`.

    matrix: [Ls, Le] float32. kept: [Le] float32, 1 for the edited prompt's tokens that have a partner in the source.
    """

    matrix: Tensor
    kept: Tensor


@dataclass(frozen=True, slots=True)
class Premix:
    """`source_map @ mapper * source + own_map * own` is the edited map.

    mapper: [Ls, Le] float32. source, own: [S, Le] float32, one row per step.
    """

    mapper: Tensor
    source: Tensor
    own: Tensor


def align(source: PromptTokens, edit: PromptTokens) -> NDArray[np.int64]:
    """[Le]: the column in the source of each token of the edited prompt, -1 where it has none.

    Tokens of prompts are paired by the longest common subsequence, the official code's global alignment; of several
    equally long ones, its choice. BOS, EOS and padding are paired chunk by chunk; padding with the column of its number.
    """
    partner = np.arange(edit.ids.size)
    partner[partner >= source.ids.size] = -1
    for chunk, (theirs, ours) in enumerate(zip(source.lengths, edit.lengths, strict=False)):
        partner[chunk * CHUNK + 1 + ours] = chunk * CHUNK + 1 + theirs
    x, y = np.array(content_columns(source), dtype=np.int64), np.array(content_columns(edit), dtype=np.int64)
    partner[y] = -1
    for i, j in _common_subsequence(source.ids.reshape(-1)[x], edit.ids.reshape(-1)[y]):
        partner[y[j]] = x[i]
    return partner


def refinement_mapper(source: PromptTokens, edit: PromptTokens) -> Mapper:
    """Tokens that both prompts have take the source's map; new ones keep their own. Any two prompts can be refined."""
    partner = align(source, edit)
    matrix = torch.zeros(source.ids.size, edit.ids.size)
    kept = torch.tensor(partner >= 0)
    columns = kept.nonzero()[:, 0]
    matrix[torch.tensor(partner)[columns], columns] = 1.0
    return Mapper(matrix, kept.float())


def replacement_mapper(tokenizer: Any, source: PromptTokens, edit: PromptTokens, field: str = "prompt") -> Mapper:
    """Each word takes the map of the source's word in its place: [Ls, Le], every token kept.

    A word of s tokens that becomes t tokens gives each of them 1 / t of each of its own, or one to one if s = t. As in the
    official code, every token behind the last replaced word takes the source's column of its own number, even if the
    replaced words had other lengths; where they were longer, the last columns take nothing.
    Raises RequestError(field) if the prompts differ in their number of words.
    """
    pairs = _word_pairs(tokenizer, source, edit, field)
    flat, changed = source.ids.reshape(-1), edit.ids.reshape(-1)
    replaced = [k for k, (x, y) in enumerate(pairs) if not np.array_equal(flat[list(x)], changed[list(y)])]
    walked = pairs[: replaced[-1] + 1] if replaced else []
    surplus = sum(len(x) - len(y) for x, y in walked)
    matrix = torch.eye(flat.size, changed.size)
    matrix[:, flat.size - max(surplus, 0) : flat.size] = 0.0
    for x, y in walked:
        matrix[:, list(y)] = 0.0
        if len(x) == len(y):
            matrix[list(x), list(y)] = 1.0
        else:
            matrix[np.ix_(x, y)] = 1.0 / len(y)
    return Mapper(matrix, torch.ones(changed.size))


def cross_alphas(steps: int, length: int, window: Window, words: Sequence[tuple[Sequence[int], Window]] = ()) -> Tensor:
    """[S, length] float32: 1 where a token takes the edited map at a step, 0 where it keeps its own.

    window: for all tokens. words: (columns, window) of tokens with a window of their own; later ones count.
    A window covers the steps from `int(start * (steps + 1))` up to `int(end * (steps + 1))`, as the official code has it.
    """
    alphas = torch.zeros(steps, length)
    for columns, (start, end) in ((range(length), window), *words):
        alphas[:, list(columns)] = 0.0
        alphas[int(start * (steps + 1)) : int(end * (steps + 1)), list(columns)] = 1.0
    return alphas


def self_steps(steps: int, window: Window) -> range:
    """The steps in which self-attention takes the source's maps: `int(start * steps)` up to `int(end * steps)`."""
    return range(int(window[0] * steps), int(window[1] * steps))


def equalizer(length: int, words: Sequence[tuple[Sequence[int], float]]) -> Tensor:
    """[length] float32: factor of each column of a map. words: (columns, factor); columns named twice multiply."""
    factors = torch.ones(length)
    for columns, factor in words:
        factors[list(columns)] *= factor
    return factors


def premix(mapper: Mapper, alphas: Tensor) -> Premix:
    """The edit at every step: `alpha * mapped + (1 - alpha) * own_map`, mapped as `Mapper` says.

    alphas: [S, Le] of `cross_alphas`.
    """
    return Premix(mapper.matrix, alphas * mapper.kept, 1.0 - alphas * mapper.kept)


def _word_pairs(
    tokenizer: Any, source: PromptTokens, edit: PromptTokens, field: str
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    theirs, ours = prompt_words(tokenizer, source), prompt_words(tokenizer, edit)
    if len(theirs) != len(ours):
        wants = f"as many words as the source prompt, {len(theirs)}, to replace them; refining takes any"
        raise RequestError(field, f"{len(ours)} words", wants)
    return list(zip(theirs, ours, strict=True))


def _common_subsequence(x: NDArray[np.int64], y: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Index pairs of a longest common subsequence, last pair first: at a tie, y's token is left out, then x's."""
    lengths = np.zeros((len(x) + 1, len(y) + 1), dtype=np.int16)
    for i, token in enumerate(x):
        longer = np.maximum(lengths[i, 1:], lengths[i, :-1] + (y == token))
        lengths[i + 1, 1:] = np.maximum.accumulate(longer)
    pairs = []
    i, j = len(x), len(y)
    while i > 0 and j > 0:
        if lengths[i, j] == lengths[i, j - 1]:
            j -= 1
        elif lengths[i, j] == lengths[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs
