"""A map injected into a prompt edit acts on the source's map as if the mapped map itself were edited."""

import pytest
import torch
from tiny_tokenizer import tiny_tokenizer

from bridle.controls import prompt_edit
from bridle.lowering import MixPlan, RowPlan, TokenBias, TokenShift
from bridle.map_controls import PromptEdit
from bridle.prompts import tokenize_prompt, word_columns

TOKENIZER = tiny_tokenizer()
POSITIONS = 12
STEPS = 4

EDITS = {
    "replace one token by one": ("a red cat and dog", "a red dog and cat", "replace", "dog"),
    "replace one token by several": ("a red cat", "a red bird", "replace", "bird"),
    "refine": ("a cat", "a red cat", "refine", "cat"),
    "refine a new word": ("a cat", "a red cat", "refine", "red"),
}


def lowered(source: str, edited: str, mode: str, word: str) -> tuple[RowPlan, list[int]]:
    """The row of an edit with a bias and a shift on the columns of a word, and these columns."""
    theirs, ours = tokenize_prompt(TOKENIZER, source), tokenize_prompt(TOKENIZER, edited)
    columns = word_columns(TOKENIZER, ours, [word])[word]
    generator = torch.Generator().manual_seed(3)
    always = torch.ones(STEPS).numpy()
    row = RowPlan(True, 1.0, torch.zeros(1, ours.ids.size, 1), None, None, (), torch.zeros(STEPS, 1))
    row.biases.append(TokenBias(columns, (torch.randn(POSITIONS, generator=generator),), always))
    row.shifts.append(TokenShift(columns, (torch.rand(POSITIONS, generator=generator),), 0.6 * always))
    edit = PromptEdit(source, cross=1.0, mode=mode)
    prompt_edit.lower(TOKENIZER, edit, theirs, ours, [row], STEPS, [POSITIONS])
    prompt_edit.carry_injected_maps([row])
    return row, list(columns)


def mapped(mix: MixPlan, source_map: torch.Tensor) -> torch.Tensor:
    return source_map @ mix.mapper.double()


@pytest.mark.parametrize("case", EDITS.values(), ids=EDITS)
def test_a_shift_of_the_source_is_a_shift_of_the_edit(case: tuple[str, str, str, str]) -> None:
    row, columns = lowered(*case)
    assert row.mix is not None
    (shift,) = row.mix.shifts
    source_map = torch.rand(POSITIONS, row.mix.mapper.shape[0], dtype=torch.float64).softmax(-1)

    def shifted(a: torch.Tensor, chosen: list[int]) -> torch.Tensor:
        a = a.clone()
        window = shift.windows[0]
        assert window is not None
        a[:, chosen] = 0.4 * a[:, chosen] + 0.6 * window.double()[:, None] * a[:, chosen].sum(0)
        return a

    ours = mapped(row.mix, shifted(source_map, list(shift.columns)))
    torch.testing.assert_close(ours, shifted(mapped(row.mix, source_map), columns), rtol=1e-12, atol=0)
    assert torch.equal(ours, mapped(row.mix, source_map)) is (case[3] == "red")


@pytest.mark.parametrize("case", EDITS.values(), ids=EDITS)
def test_a_bias_of_the_source_is_a_bias_of_the_edit(case: tuple[str, str, str, str]) -> None:
    """The words' attention is multiplied and every position's attention then sums to what it did."""
    row, columns = lowered(*case)
    assert row.mix is not None
    (bias,) = row.mix.biases
    values = bias.maps[0]
    assert values is not None
    scores = torch.randn(POSITIONS, row.mix.mapper.shape[0], dtype=torch.float64)
    biased = scores.clone()
    biased[:, list(bias.columns)] += values.double()[:, None]
    ours = mapped(row.mix, biased.softmax(-1))
    naive = mapped(row.mix, scores.softmax(-1))
    before = scores.softmax(-1)[:, list(bias.columns)].sum(-1, keepdim=True)
    naive[:, columns] *= values.double().exp()[:, None]
    naive /= 1.0 - before + before * values.double().exp()[:, None]
    kept = [c for c in range(naive.shape[1]) if row.mix.mapper[:, c].any()]
    torch.testing.assert_close(ours[:, kept], naive[:, kept], rtol=1e-12, atol=0)
    assert bool(bias.columns) is (case[3] != "red")


def test_a_longer_second_prompt_keeps_its_own_map() -> None:
    """SDXL's context is as long as the longer of two prompts."""
    tokens = tokenize_prompt(TOKENIZER, "a cat")
    row = RowPlan(True, 1.0, torch.zeros(1, 2 * tokens.ids.size, 1), None, None, (), torch.zeros(STEPS, 1))
    prompt_edit.lower(TOKENIZER, PromptEdit("a dog", cross=1.0), tokens, tokens, [row], STEPS, [POSITIONS])
    assert row.mix is not None and row.mix.own.shape == (STEPS, 2 * 77)
    assert (row.mix.own[:, 77:] == 1.0).all() and (row.mix.own[:, :77] == 0.0).all()
