"""PromptEdit (prompt-to-prompt, arXiv 2208.01626): an image whose attention maps are those of another prompt's image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bridle.controls.prompt_alignment import (
    Mapper,
    cross_alphas,
    premix,
    refinement_mapper,
    replacement_mapper,
    self_steps,
)
from bridle.lowering import MixPlan, RowPlan, SelfSource
from bridle.map_controls import PromptEdit
from bridle.prompts import PromptTokens, word_columns

SELF_POSITIONS = 256
"""Self-attention maps of at most so many positions are exchanged (official: the 16x16 and 8x8 of a 512 pixel image), or of a
sixteenth of the latent's, where that is more."""


def check(tokenizer: Any, edit: PromptEdit, source: PromptTokens, tokens: PromptTokens) -> None:
    """Raises RequestError for prompts that cannot be aligned and words that are not in them."""
    _mapper(tokenizer, edit, source, tokens)
    _spans(tokenizer, edit, tokens)


def lower(
    tokenizer: Any,
    edit: PromptEdit,
    source: PromptTokens,
    tokens: PromptTokens,
    rows: Sequence[RowPlan],
    steps: int,
    level_positions: Sequence[int],
) -> None:
    """Lets conditional rows read the maps of the source's last row, its conditional one. level_positions: N of each level."""
    default, words = _spans(tokenizer, edit, tokens)
    alphas = cross_alphas(steps, tokens.ids.size, default, words)
    mixed = premix(_mapper(tokenizer, edit, source, tokens), alphas)
    active = np.zeros(steps, dtype=bool)
    active[list(self_steps(steps, _span(edit.self)))] = True
    most = max(SELF_POSITIONS, level_positions[0] // 16)
    levels = tuple(positions <= most for positions in level_positions)
    for row in rows:
        own = np.ones((steps, row.context.shape[1]), np.float32)  # SDXL's second prompt may be longer than the first
        own[:, : tokens.ids.size] = mixed.own.numpy()
        row.mix = MixPlan(-1, mixed.mapper, mixed.source.numpy(), own)
        row.self_source = SelfSource(-1, active, levels)


def carry_injected_maps(rows: Sequence[RowPlan]) -> None:
    """Lets maps that are injected into a row act on the source's map too, in the columns that it takes.

    A biased or shifted column stays so when it is mapped: both act on the row's map as if it were its own. Where several tokens
    were replaced by fewer, the official alignment lets the tokens behind them take some of the same columns, and with them the
    injected map.
    """
    for row in rows:
        if row.mix is not None:
            biases = [replace(bias, columns=_taken(row.mix, bias.columns)) for bias in row.biases]
            shifts = [replace(shift, columns=_taken(row.mix, shift.columns)) for shift in row.shifts]
            row.mix = replace(row.mix, biases=tuple(biases), shifts=tuple(shifts))


def _taken(mix: MixPlan, columns: Sequence[int]) -> tuple[int, ...]:
    """The source's columns that some columns of the row are mapped from."""
    return tuple((mix.mapper[:, list(columns)] != 0).any(1).nonzero()[:, 0].tolist())


def _mapper(tokenizer: Any, edit: PromptEdit, source: PromptTokens, tokens: PromptTokens) -> Mapper:
    if edit.mode == "replace":
        return replacement_mapper(tokenizer, source, tokens, "prompt")
    return refinement_mapper(source, tokens)


Span = tuple[float, float]


def _spans(tokenizer: Any, edit: PromptEdit, tokens: PromptTokens) -> tuple[Span, list[tuple[Sequence[int], Span]]]:
    """The span of all tokens, and (columns, span) of words with their own."""
    if not isinstance(edit.cross, Mapping):
        return _span(edit.cross), []
    own = {word: _span(span) for word, span in edit.cross.items() if word != "default_"}
    default = _span(edit.cross.get("default_", (0.0, 1.0)))
    if not own:
        return default, []
    columns = word_columns(tokenizer, tokens, list(own), "PromptEdit.cross")
    return default, [(columns[word], span) for word, span in own.items()]


def _span(value: object) -> Span:
    """The pair that `PromptEdit.__post_init__` has put there."""
    assert isinstance(value, tuple)
    return value
