"""attention as prompt-to-prompt uses it: no map is edited, against the official controllers and against edited maps."""

from pathlib import Path

import pytest
import torch
from attention_cases import generator, rand, relative
from safetensors.torch import load_file
from torch import Tensor

from bridle_kernels.attention import Capture, MassShift, Piece, Segment, attention

GOLDEN = Path(__file__).parents[1] / "goldens" / "prompt-to-prompt" / "public-edits"
INPUTS, OUTPUTS = load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "outputs.safetensors")
PROMPTS, STEPS, TOKENS = 3, 4, 77
GOLDEN_TOLERANCE = 1e-5
EXACT = 1e-12
SOURCE = torch.tensor([0, 0, 0], dtype=torch.int32)
EDITS = torch.tensor([-1, 1, 2], dtype=torch.int32)
SOURCE_OF_EDITS = torch.tensor([-1, 0, 0], dtype=torch.int32)
ORIGINAL = torch.tensor([0, -1, -1], dtype=torch.int32)


def edited(k: Tensor, v: Tensor, from_source: Tensor, from_own: Tensor) -> tuple[Segment, ...]:
    """Row 0 as it is; rows 1 and 2 read the source's map through one pre-mix [2, L, L] and their own through another."""
    pieces = (Piece(k, v),)
    nothing = torch.zeros_like(from_source[:1])
    return (
        Segment(pieces, k_rows=ORIGINAL),
        Segment(pieces, k_rows=SOURCE_OF_EDITS, q_rows=SOURCE, v_mix=torch.cat([nothing, from_source])),
        Segment(pieces, k_rows=EDITS, v_mix=torch.cat([nothing, from_own])),
    )


def diagonal(values: Tensor) -> Tensor:
    return torch.diag_embed(values)


def refinement(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One-hot columns of the aligned tokens with their weights [2, L, L], and what stays of the edit's own map [2, L]."""
    mapper, weights = OUTPUTS["bpe.refine2.mapper"], OUTPUTS["bpe.refine2.alphas"].to(dtype)
    places = torch.zeros(2, TOKENS, TOKENS, dtype=dtype)
    for edit in range(2):
        for token in range(TOKENS):
            places[edit, mapper[edit, token], token] = weights[edit, token]
    return places, 1.0 - weights


def mixes(edit: str, step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The two pre-mixes of an edit at a step."""
    kind = "replace" if edit == "replace" else "refine"
    alpha = OUTPUTS[f"alpha_time_words.{kind}"][step, :, 0, 0].to(dtype)
    if edit == "replace":
        mixed, kept = OUTPUTS["bpe.replace2.mapper"].to(dtype), torch.zeros(2, TOKENS, dtype=dtype)
    elif edit == "reweight":
        mixed, kept = (
            diagonal(OUTPUTS["equalizer.reweight"].to(dtype).expand(2, -1)),
            torch.zeros(2, TOKENS, dtype=dtype),
        )
    else:
        mixed, kept = refinement(dtype)
    if edit == "reweight_after_refine":
        factor = INPUTS["equalizer_vector"].to(dtype)
        mixed, kept = mixed * factor[:, None], kept * factor
    return mixed * alpha[:, None], diagonal(alpha * kept + 1.0 - alpha)


def conditional(edit: str, part: str, dtype: torch.dtype) -> Tensor:
    """[P, N, H, d] of the golden's [2P, H, N, d]."""
    return INPUTS[f"{edit}.{part}"][PROMPTS:].transpose(1, 2).to(dtype)


def edited_maps(edit: str, step: int, q: Tensor, k: Tensor) -> Tensor:
    """[P, H, N, L], edited in place as the formulas of the controllers say."""
    scores = torch.einsum("pnhd,plhd->phnl", q, k) * q.shape[-1] ** -0.5
    maps = scores.softmax(-1)
    kind = "replace" if edit == "replace" else "refine"
    alpha = OUTPUTS[f"alpha_time_words.{kind}"][step].to(q.dtype)
    for row in (1, 2):
        new = maps[0]
        if edit == "replace":
            new = new @ OUTPUTS["bpe.replace2.mapper"][row - 1].to(q.dtype)
        if edit in ("refine", "reweight_after_refine"):
            weights = OUTPUTS["bpe.refine2.alphas"][row - 1].to(q.dtype)
            new = weights * new[..., OUTPUTS["bpe.refine2.mapper"][row - 1]] + (1 - weights) * maps[row]
        if edit == "reweight":
            new = new * OUTPUTS["equalizer.reweight"][0].to(q.dtype)
        if edit == "reweight_after_refine":
            new = new * INPUTS["equalizer_vector"][0].to(q.dtype)
        maps[row] = alpha[row - 1] * new + (1 - alpha[row - 1]) * maps[row]
    return maps


CROSS = ("replace", "refine", "reweight", "reweight_after_refine")
every_step = pytest.mark.parametrize("step", range(STEPS))


@every_step
@pytest.mark.parametrize("edit", CROSS)
def test_equals_the_official_controllers(edit: str, step: int) -> None:
    q, k, v = (conditional(edit, part, torch.float32) for part in "qkv")
    got = attention(q, edited(k, v, *mixes(edit, step, torch.float32)))
    wanted = OUTPUTS[f"{edit}.out"][step].transpose(1, 2).flatten(2)
    assert relative(got, wanted) < GOLDEN_TOLERANCE
    plain = OUTPUTS[f"{edit}.plain_out"].transpose(1, 2).flatten(2)
    assert relative(attention(q, [Segment((Piece(k, v),))]), plain) < GOLDEN_TOLERANCE
    assert relative(got[1:], plain[1:]) > 0.1


@every_step
@pytest.mark.parametrize("edit", CROSS)
def test_equals_edited_maps_in_float64(edit: str, step: int) -> None:
    q, k, v = (conditional(edit, part, torch.float64) for part in "qkv")
    maps = edited_maps(edit, step, q, k)
    got = attention(q, edited(k, v, *mixes(edit, step, torch.float64)))
    assert relative(got, torch.einsum("phnl,plhd->pnhd", maps, v).flatten(2)) < EXACT


@pytest.mark.parametrize("edit", CROSS)
def test_captures_of_the_segments_add_up_to_the_edited_map(edit: str) -> None:
    q, k, v = (conditional(edit, part, torch.float32) for part in "qkv")
    out = torch.zeros(PROMPTS, q.shape[2], q.shape[1], TOKENS)
    first, source, own = edited(k, v, *mixes(edit, 1, torch.float32))
    capture = Capture(None, out)
    attention(q, [Segment(s.pieces, 1.0, s.k_rows, s.v_rows, s.q_rows, None, s.v_mix, capture=capture)
                  for s in (first, source, own)])  # fmt: skip
    assert relative(out, OUTPUTS[f"{edit}.probs_step1"]) < GOLDEN_TOLERANCE


@every_step
def test_self_attention_of_the_source(step: int) -> None:
    q, k, v = (conditional("self", part, torch.float32) for part in "qkv")
    wanted = OUTPUTS["self.out"][step].transpose(1, 2).flatten(2)
    replaced = attention(q, [Segment((Piece(k, v),), k_rows=SOURCE, q_rows=SOURCE)])
    plain = attention(q, [Segment((Piece(k, v),))])
    chosen, other = (replaced, plain) if 1 <= step < 3 else (plain, replaced)
    assert relative(chosen, wanted) < GOLDEN_TOLERANCE
    assert relative(other[1:], wanted[1:]) > 0.1


def test_source_and_edit_of_different_lengths() -> None:
    """The source's map has 5 tokens, the edit's values 9; what lies behind either is not read."""
    q, k, v = rand(1, 2, 6, 2, 8), rand(2, 2, 12, 2, 8), rand(3, 2, 12, 2, 8)
    mix = torch.zeros(1, 12, 12, dtype=torch.float64)
    mix[0, :5, :9] = rand(4, 5, 9)
    mix[0, 5:] = rand(5, 7, 12)
    k[0, 5:], v[1, 9:] = torch.nan, torch.inf
    row = torch.tensor([0, 0], dtype=torch.int32)
    lengths = torch.tensor([0, 5], dtype=torch.int32)
    got = attention(q, [Segment((Piece(k, v, lengths),), k_rows=row, q_rows=row, v_mix=mix)])
    maps = (torch.einsum("nhd,lhd->hnl", q[0], k[0, :5]) * 8**-0.5).softmax(-1) @ mix[0, :5, :9]
    assert not got[0].any()
    assert relative(got[1], torch.einsum("hnl,lhd->nhd", maps, v[1, :9]).flatten(1)) < EXACT


def test_forward_guidance_is_the_formula() -> None:
    """A'[u, i] = (1 - share) A[u, i] + share * g[u] * sum_v A[v, i] for two objects and one shared token."""
    q, k, v = rand(6, 1, 30, 2, 8), rand(7, 1, 11, 2, 8), rand(8, 1, 11, 2, 8)
    boxes = torch.rand(1, 3, 30, generator=generator(9), dtype=torch.float64)
    boxes = boxes / boxes.sum(-1, keepdim=True)
    maps = (torch.einsum("nhd,lhd->hnl", q[0], k[0]) * 8**-0.5).softmax(-1)
    wanted = maps.clone()
    for place, column in enumerate((2, 3, 9)):
        mass = maps[:, :, column].sum(1, keepdim=True)
        wanted[:, :, column] = 0.2 * maps[:, :, column] + 0.8 * boxes[0, place] * mass
    columns = torch.tensor([[2, 3, 9]])
    got = attention(q, [Segment((Piece(k, v),), mass=MassShift(columns, 0.8, boxes))])
    assert relative(got[0], torch.einsum("hnl,lhd->nhd", wanted, v[0]).flatten(1)) < EXACT
    plain = attention(q, [Segment((Piece(k, v),))])
    assert relative(got, plain) > 0.05
