"""group_norm and layer_norm of the C++ core: the acceptance rule, and rows that do not know their neighbours."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels import _core, available_isas
from numerics import Guarded, assert_as_good_as_peer, unwritten

DTYPES = (torch.float32, torch.bfloat16)
GROUPED = [((32,), 32, 1), ((64,), 32, 63), ((40, 20), 4, 65), ((96,), 3, 200), ((20, 44), 32, 7), ((320,), 32, 129)]
"""Channels of the sources, groups, positions."""
each_isa = pytest.mark.parametrize("isa", available_isas())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def group_norm(
    sources: list[Tensor], weight: Tensor, bias: Tensor, isa: str, threads: int = 2, **named: object
) -> Tensor:
    rows, positions, _ = sources[0].shape
    out = Guarded.make((rows, positions, weight.shape[0]), sources[0].dtype)
    with unwritten(*sources, weight, bias, named.get("scale"), named.get("shift")):
        _core.group_norm(_core.ThreadPool(threads), sources, out.tensor, weight, bias, isa=isa, **named)
    out.check()
    return out.tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, isa: str, eps: float = 1e-5) -> Tensor:
    out = Guarded.make(tuple(x.shape), x.dtype)
    with unwritten(x, weight, bias):
        _core.layer_norm(_core.ThreadPool(2), x, out.tensor, weight, bias, eps=eps, isa=isa)
    out.check()
    return out.tensor


def definition(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """x: [R, positions, C]."""
    return F.group_norm(x.transpose(1, 2), groups, weight, bias, eps).transpose(1, 2)


@pytest.mark.parametrize("centre", [0.0, 1000.0])
@pytest.mark.parametrize("activation", ["", "silu"])
@pytest.mark.parametrize("case", GROUPED, ids=str)
@each_dtype
@each_isa
def test_group_norm(
    isa: str, dtype: torch.dtype, case: tuple[tuple[int, ...], int, int], activation: str, centre: float
) -> None:
    """With deviations of 1, also far from 0; bfloat16 holds less of that."""
    widths, groups, positions = case
    channels = sum(widths)
    centre = min(centre, 64.0) if dtype == torch.bfloat16 else centre
    sources = [(rand(i, 2, positions, width) + centre).to(dtype) for i, width in enumerate(widths)]
    weight, bias, scale, shift = (
        1 + 0.2 * rand(5, channels),
        rand(6, channels),
        rand(7, 2, channels),
        rand(8, 2, channels),
    )
    named = {"groups": groups, "eps": 1e-5, "scale": scale, "shift": shift, "activation": activation}
    ours = group_norm(sources, weight, bias, isa, **named)
    x = torch.cat(sources, 2)

    def whole(kind: torch.dtype) -> Tensor:
        normed = definition(x.to(kind), weight.to(kind), bias.to(kind), groups, 1e-5)
        out = normed * (1 + scale[:, None].to(kind)) + shift[:, None].to(kind)
        return F.silu(out) if activation else out

    exact = whole(torch.float64)
    condition = (1 + centre) * (1 + scale.abs().max()) * (exact.abs().max() + 1)
    assert_as_good_as_peer(ours, exact, whole(dtype), torch.full_like(exact, float(condition)), 80)


@each_isa
def test_what_is_constant_becomes_the_bias_exactly(isa: str) -> None:
    weight, bias = rand(1, 64), rand(2, 64)
    out = group_norm([torch.full((2, 100, 64), 3.7)], weight, bias, isa, groups=32, eps=1e-5)
    assert torch.equal(out, bias.expand(2, 100, 64))
    assert torch.equal(layer_norm(torch.full((3, 64), 0.5), weight, bias, isa), bias.expand(3, 64))


@each_isa
def test_the_two_epsilons_differ(isa: str) -> None:
    x, ones, zeros = 1e-3 * rand(1, 1, 64, 32), torch.ones(32), torch.zeros(32)
    found = [group_norm([x], ones, zeros, isa, groups=32, eps=eps) for eps in (1e-5, 1e-6)]
    for out, eps in zip(found, (1e-5, 1e-6), strict=True):
        assert torch.allclose(out.double(), definition(x.double(), ones.double(), zeros.double(), 32, eps), atol=1e-5)
    assert float((found[0] - found[1]).abs().max()) > 0.1


@each_dtype
@each_isa
def test_rows_do_not_know_their_neighbours(isa: str, dtype: torch.dtype) -> None:
    """Nor does the number of threads matter. A NaN in one row stays there."""
    x, weight, bias = rand(3, 3, 150, 64).to(dtype), rand(4, 64), rand(5, 64)
    named = {"groups": 16, "eps": 1e-5, "activation": "silu"}
    together = group_norm([x], weight, bias, isa, threads=1, **named)
    for threads in (2, 5):
        assert torch.equal(group_norm([x], weight, bias, isa, threads, **named), together)
    for row in range(3):
        assert torch.equal(group_norm([x[row : row + 1].clone()], weight, bias, isa, **named)[0], together[row])
    x[1, 70, 5] = torch.nan
    broken = group_norm([x], weight, bias, isa, **named)
    assert torch.equal(broken[[0, 2]], together[[0, 2]])
    assert broken[1, :, 4:8].isnan().all() and torch.equal(broken[1, :, 8:], together[1, :, 8:])


def test_variants_agree_to_the_bit() -> None:
    x, weight, bias = rand(6, 2, 130, 96), rand(7, 96), rand(8, 96)
    first, *others = (group_norm([x], weight, bias, isa, groups=32, eps=1e-6) for isa in available_isas())
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("centre", [0.0, 1000.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (17, 320), (40, 333), (5, 1280)], ids=str)
@each_dtype
@each_isa
def test_layer_norm(isa: str, dtype: torch.dtype, size: tuple[int, int], centre: float) -> None:
    centre = min(centre, 64.0) if dtype == torch.bfloat16 else centre
    x, weight, bias = (rand(1, *size) + centre).to(dtype), rand(2, size[1]), rand(3, size[1])
    out = layer_norm(x, weight, bias, isa)
    exact = F.layer_norm(x.double(), size[1:], weight.double(), bias.double(), 1e-5)
    peer = F.layer_norm(x, size[1:], weight.to(dtype), bias.to(dtype), 1e-5)
    magnitude = (1 + centre) * (weight.abs() + bias.abs()).double().expand(size)
    assert_as_good_as_peer(out, exact, peer, magnitude, 16)


def test_what_does_not_fit_is_named() -> None:
    pool, x, w = _core.ThreadPool(1), rand(1, 1, 4, 6), torch.ones(6)
    with pytest.raises(ValueError, match="groups is 4, wants a divisor of 6"):
        _core.group_norm(pool, [x], torch.empty(1, 4, 6), w, w, groups=4, eps=1e-5)
    with pytest.raises(ValueError, match=r"weight is \[5\], wants \[6\]"):
        _core.group_norm(pool, [x], torch.empty(1, 4, 6), torch.ones(5), w, groups=2, eps=1e-5)
    with pytest.raises(ValueError, match="wants float32 or bfloat16"):
        _core.layer_norm(pool, x[0].half(), torch.empty(4, 6, dtype=torch.float16), w, w, eps=1e-5)
    with pytest.raises(ValueError, match="weight is None"):
        _core.group_norm(pool, [x], torch.empty(1, 4, 6), None, w, groups=2, eps=1e-5)
    with pytest.raises(ValueError, match="out is None"):
        _core.layer_norm(pool, x[0], None, w, w, eps=1e-5)
    with pytest.raises(ValueError, match="x has no channels"):
        _core.layer_norm(pool, torch.zeros(3, 0), torch.zeros(3, 0), torch.zeros(0), torch.zeros(0), eps=1e-5)


def test_activations_that_it_has_not_are_refused() -> None:
    x = torch.zeros(1, 4, 8)
    with pytest.raises(ValueError, match="group_norm: activation is 'relu', wants '' or silu"):
        _core.group_norm(_core.ThreadPool(1), [x], x.clone(), x[0, 0], x[0, 0], groups=2, eps=1e-5, activation="relu")
