"""Prompt-to-prompt's word alignment against the official code's vectors and against edits of whole maps."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from ptp_cases import WordTokenizer, allowed, assert_close, clip_tokenizer, config, encode, tensors
from torch import Tensor

from bridle.controls.prompt_alignment import (
    Mapper,
    Premix,
    align,
    cross_alphas,
    equalizer,
    premix,
    refinement_mapper,
    replacement_mapper,
    self_steps,
)
from bridle.errors import RequestError
from bridle.prompts import PromptTokens, tokenize_prompt, with_chunks, word_columns

EDITS, PIPELINE = "public-edits", "public-pipeline-replace-blend"
CONFIG = config(EDITS)
OUTPUTS, INPUTS = tensors(EDITS, "outputs"), tensors(EDITS, "inputs")
TOKENIZERS: dict[str, Any] = {
    "bpe": clip_tokenizer(EDITS),
    "words": WordTokenizer(CONFIG["toy_tokenizer"]["vocab"]),
}
STEPS = CONFIG["steps"]


def source_and_edits(kind: str, prompts: list[str]) -> tuple[PromptTokens, list[PromptTokens]]:
    tokens = [encode(TOKENIZERS[kind], prompt) for prompt in prompts]
    return tokens[0], tokens[1:]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("case", range(3))
def test_replacement_is_the_official_one(kind: str, case: int) -> None:
    source, edits = source_and_edits(kind, CONFIG["replace_prompts"][case])
    found = [replacement_mapper(TOKENIZERS[kind], source, edit) for edit in edits]
    name = f"{kind}.replace{case}.mapper"
    assert_close(EDITS, name, torch.stack([mapper.matrix for mapper in found]), OUTPUTS[name])
    assert all(bool((mapper.kept == 1).all()) for mapper in found)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("case", range(3))
def test_refinement_is_the_official_one(kind: str, case: int) -> None:
    source, edits = source_and_edits(kind, CONFIG["refine_prompts"][case])
    partners = np.stack([align(source, edit) for edit in edits])
    assert_close(EDITS, f"{kind}.refine{case}.mapper", partners, OUTPUTS[f"{kind}.refine{case}.mapper"])
    found = [refinement_mapper(source, edit) for edit in edits]
    kept = torch.stack([mapper.kept for mapper in found])
    assert_close(EDITS, f"{kind}.refine{case}.alphas", kept, OUTPUTS[f"{kind}.refine{case}.alphas"])
    for mapper, partner in zip(found, partners, strict=True):
        expected = np.zeros((77, 77))
        for column, own in enumerate(partner):
            if own >= 0:
                expected[own, column] = 1.0
        np.testing.assert_array_equal(mapper.matrix.numpy(), expected)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_words_are_found_where_the_official_code_finds_them(kind: str) -> None:
    for index, (prompt, word) in enumerate(CONFIG["word_inds_probes"]):
        wanted = tuple(OUTPUTS[f"{kind}.word_inds{index}"].tolist())
        text = prompt.split()[word] if isinstance(word, int) else word
        if wanted:
            found = word_columns(TOKENIZERS[kind], encode(TOKENIZERS[kind], prompt), [text])
            assert found == {text: wanted}
        else:
            with pytest.raises(RequestError):
                word_columns(TOKENIZERS[kind], encode(TOKENIZERS[kind], prompt), [text])


def alphas_of(tokenizer: Any, edits: list[PromptTokens], windows: Any, steps: int) -> Tensor:
    """[S, edits, 77] from the official code's way to write windows."""
    table = dict(windows) if isinstance(windows, dict) else {"default_": windows}
    default = table.pop("default_")
    found = []
    for edit in edits:
        words = []
        for word, window in table.items():
            try:
                words.append((word_columns(tokenizer, edit, [word])[word], tuple(window)))
            except RequestError:
                continue
        found.append(cross_alphas(steps, 77, (0.0, default), words))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("edit", ["replace", "refine"])
def test_windows_are_the_official_ones(edit: str) -> None:
    prompts = "replace" if edit == "replace" else "refine, reweight, reweight_after_refine"
    _, edits = source_and_edits("bpe", CONFIG["attention_prompts"][prompts])
    windows = CONFIG["cross_replace_steps"]["replace" if edit == "replace" else "others"]
    name = f"alpha_time_words.{edit}"
    assert_close(EDITS, name, alphas_of(TOKENIZERS["bpe"], edits, windows, STEPS), OUTPUTS[name][:STEPS, :, 0, 0])
    assert 0 < float(OUTPUTS[name].mean()) < 1


def test_windows_of_the_pipeline_are_the_official_ones() -> None:
    tokenizer, case = clip_tokenizer(PIPELINE), config(PIPELINE)
    edits = [encode(tokenizer, prompt) for prompt in case["prompts"][1:]]
    found = alphas_of(tokenizer, edits, case["controller_arguments"]["n_cross_replace"], case["steps"])
    wanted = tensors(PIPELINE, "outputs")["alpha_time_words"][: case["steps"], :, 0, 0]
    assert_close(PIPELINE, "alpha_time_words", found, wanted)


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def edit_settings(edit: str) -> tuple[list[Mapper], Tensor, Tensor | None]:
    """Mappers of both edited prompts, alphas [S, 2, 77] and factors of one of the official edits."""
    prompts = "replace" if edit == "replace" else "refine, reweight, reweight_after_refine"
    source, edits = source_and_edits("bpe", CONFIG["attention_prompts"][prompts])
    windows = CONFIG["cross_replace_steps"]["replace" if edit == "replace" else "others"]
    alphas = alphas_of(TOKENIZERS["bpe"], edits, windows, STEPS)
    if edit == "replace":
        return [replacement_mapper(TOKENIZERS["bpe"], source, e) for e in edits], alphas, None
    refined = [refinement_mapper(source, e) for e in edits]
    if edit == "refine":
        return refined, alphas, None
    if edit == "reweight":
        return [Mapper(torch.eye(77), torch.ones(77))] * 2, alphas, OUTPUTS["equalizer.reweight"][0]
    return refined, alphas, INPUTS["equalizer_vector"][0]


def reweighted(mapper: Mapper, alphas: Tensor, factors: Tensor | None) -> Premix:
    """The official reweighting scales the edited map before it fades into the row's own."""
    plain = premix(mapper, alphas)
    if factors is None:
        return plain
    return Premix(plain.mapper, plain.source * factors, plain.own + alphas * (1 - mapper.kept) * (factors - 1))


@pytest.mark.parametrize("edit", ["replace", "refine", "reweight", "reweight_after_refine"])
def test_mixed_values_give_the_official_output(edit: str) -> None:
    """`<edit>.out` was computed by editing the maps; here no map is edited."""
    mappers, alphas, factors = edit_settings(edit)
    q, k, v = (INPUTS[f"{edit}.{part}"][3:] for part in "qkv")
    name = f"{edit}.out"
    for step, row in itertools.product(range(STEPS), (1, 2)):
        mixed = reweighted(mappers[row - 1], alphas[:, row - 1], factors)
        from_source = mixed.mapper @ (mixed.source[step][:, None] * v[row])
        from_own = mixed.own[step][:, None] * v[row]
        out = probabilities(q[0], k[0]) @ from_source + probabilities(q[row], k[row]) @ from_own
        assert_close(EDITS, name, out, OUTPUTS[name][step, row])
    assert float((OUTPUTS[name] - OUTPUTS[f"{edit}.plain_out"]).abs().max()) > 100 * allowed(EDITS, name)


def test_equalizer_is_the_official_one() -> None:
    prompt = CONFIG["attention_prompts"]["refine, reweight, reweight_after_refine"][1]
    word, factor = CONFIG["reweight"]["word"], CONFIG["reweight"]["value"]
    columns = word_columns(TOKENIZERS["bpe"], encode(TOKENIZERS["bpe"], prompt), [word])[word]
    assert_close(EDITS, "equalizer.reweight", equalizer(77, [(columns, factor)])[None], OUTPUTS["equalizer.reweight"])


def test_equalizer_of_several_words() -> None:
    factors = equalizer(10, [((1, 2), 2.0), ((2, 5), -0.5)])
    assert factors.tolist() == [1, 2, -1, 1, 1, -0.5, 1, 1, 1, 1]


def test_self_attention_steps() -> None:
    window = CONFIG["self_replace_steps"]
    steps = self_steps(STEPS, (window[0], window[1]))
    assert list(steps) == [1, 2]
    q, k, v = (INPUTS[f"self.{part}"][3:] for part in "qkv")
    for step, row in itertools.product(range(STEPS), (1, 2)):
        of = 0 if step in steps else row
        assert_close(EDITS, "self.out", probabilities(q[of], k[of]) @ v[row], OUTPUTS["self.out"][step, row])


def test_windows_end_where_fractions_say() -> None:
    """Bounds count one step more than there are."""
    assert cross_alphas(10, 2, (0.0, 0.8)).sum(0).tolist() == [8, 8]
    assert cross_alphas(10, 2, (0.0, 1.0)).sum(0).tolist() == [10, 10]
    assert cross_alphas(10, 2, (0.0, 0.0)).sum() == 0
    alphas = cross_alphas(4, 3, (0.0, 1.0), [((1,), (0.5, 1.0)), ((2,), (0.0, 0.2))])
    assert alphas.T.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0]]
    assert list(self_steps(10, (0.0, 0.4))) == [0, 1, 2, 3]
    assert list(self_steps(10, (0.0, 0.0))) == []


def edited_map(mapper: Mapper, alpha: Tensor, factors: Tensor, base: Tensor, own: Tensor) -> Tensor:
    """The edit as it is written: map the source's columns, keep, reweight, then fade per token."""
    mapped = base @ mapper.matrix.double() * mapper.kept + own * (1 - mapper.kept)
    return alpha * (factors * mapped) + (1 - alpha) * own


TOKENIZER = TOKENIZERS["bpe"]
LONG = "a photo of a house on a mountain, " * 9
PAIRS = {
    "one chunk": ("a red cat in the grass", "a red dachshund in the snow"),
    "two chunks": (LONG + "a red cat", LONG + "a red dachshund"),
    "torn by a break": ("a red cat BREAK in the grass", "a red BREAK dachshund in the snow"),
}


@pytest.mark.parametrize("prompts", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("extra", [0, 1])
def test_premix_equals_the_edited_map(prompts: tuple[str, str], mode: str, extra: int) -> None:
    """Also where the edited prompt's context is longer than the source's."""
    source, edit = (tokenize_prompt(TOKENIZER, prompt) for prompt in prompts)
    edit = with_chunks(TOKENIZER, edit, len(edit.lengths) + extra)
    mapper = replacement_mapper(TOKENIZER, source, edit) if mode == "replace" else refinement_mapper(source, edit)
    random = torch.Generator().manual_seed(extra)
    length = edit.ids.size
    alphas = torch.rand(3, length, generator=random)
    factors = 2 * torch.rand(length, generator=random)
    base = torch.randn(5, source.ids.size, generator=random).double().softmax(-1)
    own = torch.randn(5, length, generator=random).double().softmax(-1)
    values = torch.randn(length, 7, generator=random).double()
    mixed = reweighted(Mapper(mapper.matrix.double(), mapper.kept.double()), alphas.double(), factors.double())
    for step in range(3):
        wanted = edited_map(mapper, alphas[step].double(), factors.double(), base, own) @ values
        torch.testing.assert_close(by_values(mixed, step, base, own, values), wanted, rtol=1e-12, atol=1e-12)
        assert float((wanted - own @ values).abs().max()) > 1e-3


def by_values(mixed: Premix, step: int, base: Tensor, own: Tensor, values: Tensor) -> Tensor:
    return base @ (mixed.mapper @ (mixed.source[step][:, None] * values)) + own @ (mixed.own[step][:, None] * values)


def test_chunks_are_aligned_across_their_borders() -> None:
    """One more word in front moves a word into the next chunk; it still finds its partner."""
    source = tokenize_prompt(TOKENIZER, "red " * 74 + "cat in the grass")
    edit = tokenize_prompt(TOKENIZER, "house " + "red " * 74 + "cat in the grass")
    assert (source.lengths, edit.lengths) == ((75, 3), (75, 4))
    partner = align(source, edit)
    (cat,) = word_columns(TOKENIZER, edit, ["cat"])["cat"]
    assert (cat, partner[cat]) == (78, 75)
    assert partner[1] == -1 and (partner[1:] >= 0).sum() == partner.size - 2
    for i, j in ((77 + 4, 77 + 5), (76, 76), (77, 77), (0, 0)):
        assert partner[j] == i


def test_replaced_words_in_a_second_chunk() -> None:
    source = tokenize_prompt(TOKENIZER, "in the grass BREAK a cat in the grass")
    edit = tokenize_prompt(TOKENIZER, "in the grass BREAK a dachshund in the grass")
    mapper = replacement_mapper(TOKENIZER, source, edit)
    assert mapper.matrix.shape == (154, 154)
    expected = torch.eye(154)
    expected[:, 79:81] = 0.0
    expected[79, 79:81] = 0.5
    assert torch.equal(mapper.matrix, expected)


def test_equal_prompts_replace_nothing() -> None:
    tokens = tokenize_prompt(TOKENIZER, "a red cat")
    assert torch.equal(replacement_mapper(TOKENIZER, tokens, tokens).matrix, torch.eye(77))
    refined = refinement_mapper(tokens, tokens)
    assert torch.equal(refined.matrix, torch.eye(77))
    assert bool((refined.kept == 1).all())


def test_long_prompts_align_quickly() -> None:
    prompt = "a red cat sleeping in the grass " * 640
    source = tokenize_prompt(TOKENIZER, prompt)
    edit = tokenize_prompt(TOKENIZER, prompt + "snow")
    partner = align(source, edit)
    new = np.flatnonzero(partner < 0)
    assert edit.ids.reshape(-1)[new].tolist() == TOKENIZER("snow", add_special_tokens=False)["input_ids"]


def test_replacing_needs_as_many_words() -> None:
    source, edit = (encode(TOKENIZER, prompt) for prompt in ("a cat", "a red cat"))
    with pytest.raises(RequestError, match=r"3 words.*the source prompt, 2") as caught:
        replacement_mapper(TOKENIZER, source, edit, "PromptEdit.source_prompt")
    assert caught.value.field == "PromptEdit.source_prompt"
