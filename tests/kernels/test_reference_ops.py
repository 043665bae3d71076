"""The reference ops against definitions spelled out in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from residual_term import Term
from torch import Tensor

from bridle_kernels.attention import Piece, Segment
from bridle_kernels.ops import Ops, ReferenceOps

OPS: Ops = ReferenceOps()


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    assert got.shape == wanted.shape
    error = (got.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1e-30)
    assert float(error) <= tolerance


def naive_attention(q: Tensor, segments: list[Segment], scale: float) -> Tensor:
    """Row by row, head by head, with the whole map in float64."""
    rows, queries, heads, dim = q.shape
    out = torch.zeros(rows, queries, heads, dim, dtype=torch.float64)
    for segment in segments:
        for r in range(rows):
            sources = [
                r if given is None else int(given[r]) for given in (segment.q_rows, segment.k_rows, segment.v_rows)
            ]
            if min(sources) < 0:
                continue
            for head in range(heads):
                out[r, :, head] += naive_head(q, segment, r, head, sources, scale)
    return out.flatten(2)


def naive_head(q: Tensor, segment: Segment, r: int, head: int, sources: list[int], scale: float) -> Tensor:
    q_row, k_row, v_row = sources
    keys, values, biases, start = [], [], [], 0
    for piece in segment.pieces:
        valid = piece.k.shape[1] if piece.length is None else int(piece.length[r])
        keys.append(piece.k[k_row if piece.k.shape[0] > 1 else 0, :valid, head].double())
        values.append(piece.v[v_row if piece.v.shape[0] > 1 else 0, :valid, head].double())
        if segment.bias is not None:
            row = segment.bias[r % segment.bias.shape[0]]
            row = row[head % row.shape[0], :, start : start + valid].double()
            biases.append(row.expand(q.shape[1], valid))
        start += piece.k.shape[1]
    k, v = torch.cat(keys), torch.cat(values)
    if k.shape[0] == 0:
        return torch.zeros(q.shape[1], v.shape[1], dtype=torch.float64)
    scores = scale * q[q_row, :, head].double() @ k.T
    if biases:
        scores = scores + torch.cat(biases, 1)
    weights = torch.exp(scores - scores.amax(1, keepdim=True).clamp(min=-1e300))
    weights = torch.nan_to_num(weights / weights.sum(1, keepdim=True))
    if isinstance(segment.weight, Tensor):
        factor = segment.weight[r].double().reshape(-1, 1)
    else:
        factor = torch.tensor([[segment.weight]], dtype=torch.float64)
    return factor * (weights @ v)


R, N, H, D = 4, 11, 3, 5


def piece(seed: int, rows: int, tokens: int, length: list[int] | None = None) -> Piece:
    lengths = None if length is None else torch.tensor(length, dtype=torch.int32)
    return Piece(rand(seed, rows, tokens, H, D), rand(seed + 1, rows, tokens, H, D), lengths)


def index(*rows: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def hiding_bias() -> Tensor:
    bias = rand(40, R, 1, N, 7)
    bias[1, :, 3] = -torch.inf
    bias[2, :, :, 2:5] = -torch.inf
    return bias


CASES = {
    "one segment": [Segment((piece(1, R, 7),))],
    "shared keys": [Segment((piece(2, 1, 7),))],
    "pieces share a softmax": [Segment((piece(3, R, 7), piece(5, R, 1), piece(7, 1, 4)))],
    "segments do not": [Segment((piece(3, R, 7),)), Segment((piece(5, R, 1),), 0.25)],
    "weight per row": [Segment((piece(9, R, 7),), rand(10, R)), Segment((piece(11, R, 2),))],
    "weight per query": [Segment((piece(12, R, 7),), rand(13, R, N)), Segment((piece(14, R, 2),), rand(15, R, N))],
    "independent rows": [Segment((piece(16, 3, 7),), 1.0, index(2, 0, 0, 1), index(1, 1, 2, 0), index(3, 3, 0, 1))],
    "absent rows": [
        Segment((piece(18, 3, 7),), 1.0, index(2, -1, 0, 1), index(2, 0, 0, -1)),
        Segment((piece(20, R, 2),)),
    ],
    "lengths": [Segment((piece(22, R, 7, [7, 0, 1, 4]), piece(24, R, 3, [3, 2, 0, 1])))],
    "lengths and rows": [Segment((piece(26, 2, 7, [7, 0, 1, 4]),), 2.0, index(1, 1, 0, 0), index(1, 1, 0, 0))],
    "bias over all": [Segment((piece(28, R, 7),), bias=rand(29, R, H, N, 7))],
    "bias shared": [Segment((piece(30, R, 4), piece(32, R, 3)), bias=rand(33, 1, 1, 1, 7))],
    "bias that hides": [Segment((piece(34, R, 7),), rand(35, R), bias=hiding_bias())],
    "bias and lengths": [Segment((piece(36, R, 4, [4, 0, 2, 1]), piece(38, R, 3)), bias=rand(39, 1, H, N, 7))],
}


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_attention(case: str, scale: float | None) -> None:
    q = rand(50, R, N, H, D)
    got = OPS.attention(q, CASES[case], scale=scale)
    close(got, naive_attention(q, CASES[case], D**-0.5 if scale is None else scale))


@pytest.mark.parametrize("tokens", [1, 2, 33])
@pytest.mark.parametrize("dim", [1, 8, 40, 320])
def test_attention_sizes(tokens: int, dim: int) -> None:
    q, k, v = rand(51, 2, 3, 2, dim), rand(52, 2, tokens, 2, dim), rand(53, 2, tokens, 2, dim)
    segments = [Segment((Piece(k, v),))]
    close(OPS.attention(q, segments), naive_attention(q, segments, dim**-0.5), 4e-6)


def test_attention_row_without_keys_gives_zero() -> None:
    q = rand(54, R, N, H, D)
    empty = OPS.attention(q, [Segment((piece(55, R, 7, [0, 7, 0, 7]),))])
    assert not empty[[0, 2]].any()
    assert empty[[1, 3]].abs().min() > 0


def test_attention_never_reads_behind_the_length() -> None:
    q, whole = rand(56, R, N, H, D), piece(57, R, 7, [3, 0, 1, 4])
    poisoned = Piece(whole.k.clone(), whole.v.clone(), whole.length)
    for r, valid in enumerate([3, 0, 1, 4]):
        poisoned.k[r, valid:] = torch.nan
        poisoned.v[r, valid:] = torch.inf
    assert torch.equal(OPS.attention(q, [Segment((poisoned,))]), OPS.attention(q, [Segment((whole,))]))


def test_attention_poisoned_row_stays_alone() -> None:
    q, whole = rand(58, R, N, H, D), piece(59, R, 7)
    clean = OPS.attention(q, [Segment((whole,))])
    whole.k[2], whole.v[2] = torch.nan, torch.nan
    dirty = OPS.attention(q, [Segment((whole,))])
    assert torch.equal(dirty[[0, 1, 3]], clean[[0, 1, 3]])
    assert dirty[2].isnan().all()


def test_attention_causal() -> None:
    q, p = rand(60, R, 7, H, D), piece(61, R, 7)
    hidden = torch.full((1, 1, 7, 7), -torch.inf).triu(1)
    close(OPS.attention(q, [Segment((p,))], causal=True), OPS.attention(q, [Segment((p,), bias=hidden)]))


def test_attention_float32_scores_do_not_overflow_in_half() -> None:
    q = (60 * rand(62, 1, 3, 2, 16)).half()
    p = Piece((60 * rand(63, 1, 5, 2, 16)).half(), rand(64, 1, 5, 2, 16).half())
    got = OPS.attention(q, [Segment((p,))], scale=1.0, float32_scores=True)
    assert got.dtype == torch.float16
    close(got, naive_attention(q, [Segment((p,))], 1.0), 1e-3)


def test_attention_gradients_exist_with_empty_rows() -> None:
    q = rand(65, R, N, H, D).requires_grad_()
    OPS.attention(q, [Segment((piece(66, R, 7, [0, 7, 2, 1]),), bias=hiding_bias())]).square().sum().backward()
    assert q.grad is not None and q.grad.isfinite().all()


BAD = {
    "segments is empty": [],
    "has no pieces": [Segment(())],
    "k is": [Segment((Piece(rand(1, R, 7, H, D + 1), rand(1, R, 7, H, D)),))],
    "v is": [Segment((Piece(rand(1, R, 7, H, D), rand(1, R, 6, H, D)),))],
    "k has 3 rows": [Segment((piece(67, 3, 7),))],
    "k_rows is": [Segment((piece(68, 3, 7),), 1.0, index(0, 1), index(0, 1, 2, 0))],
}


@pytest.mark.parametrize("problem", BAD)
def test_attention_refuses(problem: str) -> None:
    with pytest.raises(ValueError, match=f"attention: .*{problem}"):
        OPS.attention(rand(69, R, N, H, D), BAD[problem])


def test_causal_refuses_masks() -> None:
    with pytest.raises(ValueError, match="causal"):
        OPS.attention(rand(70, R, 7, H, D), [Segment((piece(71, R, 7),), bias=rand(72, 1, 1, 1, 7))], causal=True)


def test_residual_add() -> None:
    x = rand(1, 4, 3, 5, 7)
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(2))
    terms = [
        Term(rand(3, 4, 3, 5, 7), rand(4, 4)),
        Term(rand(5, 1, 3, 5, 7), rand(6, 2), (2, 0), mask),
        Term(rand(7, 1, 3, 1, 1), rand(8, 1), (2,)),
    ]
    wanted = x.double()
    wanted += terms[0].scale.double()[:, None, None, None] * terms[0].values
    for place, row in enumerate((2, 0)):
        wanted[row] += terms[1].scale[place].double() * mask[place] * terms[1].values[0]
    wanted[2] += terms[2].scale[0].double() * terms[2].values[0]
    before = x.clone()
    got = OPS.residual_add(x, terms)
    close(got, wanted)
    assert torch.equal(x, before)
    assert torch.equal(OPS.residual_add(x, terms[1:])[[1, 3]], x[[1, 3]])


@pytest.mark.parametrize(
    "term", [Term(rand(1, 4, 3, 5, 6), torch.ones(4)), Term(rand(1, 1, 3, 5, 7), torch.ones(1), (4,))]
)
def test_residual_add_refuses(term: Term) -> None:
    with pytest.raises(ValueError, match="residual_add: "):
        OPS.residual_add(rand(2, 4, 3, 5, 7), [term])


def test_conv2d_epilogue_and_pair() -> None:
    a, b = rand(1, 2, 3, 7, 6), rand(2, 2, 4, 7, 6)
    weight, bias, shift, residual = rand(3, 5, 7, 3, 3), rand(4, 5), rand(5, 2, 5), rand(6, 2, 5, 4, 3)
    plain = F.conv2d(torch.cat([a, b], 1).double(), weight.double(), bias.double(), 2, 1)
    wanted = F.silu(plain + shift.double()[:, :, None, None] + residual.double())
    got = OPS.conv2d((a, b), weight, bias, stride=2, shift=shift, residual=residual, activation="silu")
    close(got, wanted)


def test_conv2d_of_an_upsampled_image() -> None:
    x, weight = rand(1, 2, 3, 5, 7), rand(2, 4, 3, 3, 3)
    for size in ((10, 14), (9, 13)):
        larger = x.double().repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]
        close(OPS.conv2d(x, weight, upsample=size), F.conv2d(larger, weight.double(), padding=1))


def test_conv2d_asymmetric_padding() -> None:
    x, weight = rand(7, 1, 2, 6, 5), rand(8, 3, 2, 3, 3)
    wanted = F.conv2d(F.pad(x.double(), (0, 1, 2, 0)), weight.double())
    close(OPS.conv2d(x, weight, padding=(0, 1, 2, 0)), wanted)


@pytest.mark.parametrize("kernel", [(), (1, 1)])
def test_linear(kernel: tuple[int, ...]) -> None:
    x, weight, bias, residual = rand(1, 2, 7, 5), rand(2, 6, 5, *kernel), rand(3, 6), rand(4, 2, 7, 6)
    wanted = F.relu(x.double() @ weight.double().flatten(1).T + bias.double() + residual.double())
    close(OPS.linear(x, weight, bias, residual=residual, activation="relu"), wanted)


def test_project_heads_and_geglu() -> None:
    x, weights, biases = rand(1, 2, 7, 5), [rand(2, 6, 5), rand(3, 6, 5)], [rand(4, 6), rand(5, 6)]
    for got, weight, bias in zip(OPS.project_heads(x, weights, 3, biases), weights, biases, strict=True):
        close(got, (x.double() @ weight.double().T + bias.double()).reshape(2, 7, 3, 2))
    value, gate = (x.double() @ weights[0].double().T + biases[0].double()).chunk(2, -1)
    close(OPS.geglu(x, weights[0], biases[0]), value * 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))))


def test_group_norm_with_second_condition() -> None:
    a, b, scale, shift = rand(1, 2, 3, 5, 7), rand(2, 2, 5, 5, 7), rand(3, 2, 8), rand(4, 2, 8)
    weight, bias = rand(5, 8), rand(6, 8)
    x = torch.cat([a, b], 1).double().reshape(2, 4, -1)
    normed = (x - x.mean(2, keepdim=True)) / (x.var(2, unbiased=False, keepdim=True) + 1e-3).sqrt()
    normed = normed.reshape(2, 8, 5, 7) * weight.double()[:, None, None] + bias.double()[:, None, None]
    wanted = F.silu(normed * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None])
    close(OPS.group_norm((a, b), weight, bias, 4, 1e-3, activation="silu", affine=(scale, shift)), wanted)


@pytest.mark.parametrize("dim", [2, 7, 320])
@pytest.mark.parametrize("flip", [True, False])
def test_time_embedding_is_diffusers_to_the_bit(dim: int, flip: bool) -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 1.0, 77.5, 500.0, 999.0])
    for shift in (0, 1) if dim > 3 else (0,):
        wanted = get_timestep_embedding(t, dim, flip_sin_to_cos=flip, downscale_freq_shift=shift)
        got = OPS.time_embedding(t, dim, flip_sin_to_cos=flip, freq_shift=shift, dtype=torch.float32)
        assert torch.equal(got, wanted)


def test_time_embedding_of_several_numbers_per_row() -> None:
    t = torch.tensor([[1.0, 512.0], [0.0, 7.0]])
    both = OPS.time_embedding(t, 6, flip_sin_to_cos=True, freq_shift=0, dtype=torch.float32)
    parts = [OPS.time_embedding(c, 6, flip_sin_to_cos=True, freq_shift=0, dtype=torch.float32) for c in t.unbind(1)]
    assert torch.equal(both, torch.cat(parts, 1))


def test_resampling() -> None:
    x = rand(1, 2, 3, 5, 7)
    pooled = OPS.average_pool(x)
    assert pooled.shape == (2, 3, 3, 4)
    close(pooled[:, :, 0, 0], x[:, :, :2, :2].double().mean((2, 3)))
    close(pooled[:, :, 2, 3], x[:, :, 4, 6].double())
    close(OPS.spatial_mean(x), x.double().mean((2, 3), keepdim=True))


def test_resized_masks_still_add_up_to_one() -> None:
    left = (torch.rand(2, 1, 9, 13, generator=torch.Generator().manual_seed(1)) > 0.4).float()
    total = OPS.resize_mask(left, (5, 7)) + OPS.resize_mask(1 - left, (5, 7))
    close(total, torch.ones(2, 1, 5, 7))
    assert OPS.resize_mask(left, (9, 13)).equal(left)


def test_pixel_unshuffle() -> None:
    x = rand(1, 2, 3, 8, 12)
    got = OPS.pixel_unshuffle(x, 4)
    assert got.shape == (2, 48, 2, 3)
    assert torch.equal(got[:, 2 * 16 + 4 * 1 + 3], x[:, 2, 1::4, 3::4])
    with pytest.raises(ValueError, match="pixel_unshuffle: "):
        OPS.pixel_unshuffle(x, 5)


def test_activations() -> None:
    x = rand(1, 3, 5).double()
    before = x.clone()
    sigmoid = 1 / (1 + torch.exp(-x))
    close(OPS.activation(x, "silu"), x * sigmoid)
    close(OPS.activation(x, "quick_gelu"), x / (1 + torch.exp(-1.702 * x)))
    close(OPS.activation(x, "gelu"), 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))
    assert torch.equal(OPS.activation(x, "relu"), x.clamp(min=0))
    assert torch.equal(OPS.activation(x, "tanh"), x.tanh())
    assert torch.equal(OPS.scale_shift(x, 2.0, 0.0), 2 * x)
    close(OPS.scale_shift(x, 2.0, -1.0), 2 * x - 1)
    assert torch.equal(x, before)


def test_embedding_and_end_token() -> None:
    ids = torch.tensor([[1, 8, 2, 8, 9], [5, 0, 9, 3, 8]])
    tokens, positions = rand(1, 10, 4), rand(2, 7, 4)
    x = OPS.embedding(ids, tokens, positions)
    assert torch.equal(x[1, 2], tokens[9] + positions[2])
    assert torch.equal(OPS.end_token(x, ids, 8), torch.stack([x[0, 1], x[1, 4]]))
    assert torch.equal(OPS.end_token(x, ids, None), torch.stack([x[0, 4], x[1, 2]]))
    with pytest.raises(ValueError, match="embedding: "):
        OPS.embedding(torch.zeros(1, 8, dtype=torch.int64), tokens, positions)


def test_tokens_rows_and_columns() -> None:
    x = rand(1, 3, 4, 5, 7)
    tokens = OPS.tokens(x)
    assert torch.equal(tokens[1, 9], x[1, :, 1, 2])
    assert torch.equal(OPS.image(tokens, (5, 7)), x)
    assert torch.equal(OPS.columns(x, 1, 3), x[:, 1:3])
    assert torch.equal(OPS.concat([OPS.columns(x, 0, 1), OPS.columns(x, 1, 4)]), x)
    assert torch.equal(OPS.rows(x, (2, 0, 2)), x[[2, 0, 2]])
    assert OPS.name_point(x, "anything") is x
