"""Copies, pools, elementwise functions, token and time embeddings of the C++ core: the acceptance rule."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from residual_term import Term
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.activation import activation, scale_shift
from bridle_kernels.embedding import embedding, end_token
from bridle_kernels.executor import residual_term
from bridle_kernels.resample import average_pool, resize_mask
from bridle_kernels.residual_add import residual_add
from bridle_kernels.time_embedding import time_embedding
from bridle_kernels.time_embedding.reference import frequencies
from numerics import Guarded, assert_as_good_as_peer, assert_integer_exact, unwritten

KINDS = ("silu", "relu", "gelu", "quick_gelu", "tanh")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@dataclass(frozen=True)
class Residual(Term):
    """A term in any dtype."""

    def of(self, dtype: torch.dtype, absolute: bool = False) -> "Residual":
        """In another dtype."""
        parts = [None if part is None else part.to(dtype) for part in (self.values, self.scale, self.mask)]
        values, scale, mask = (part.abs() if absolute and part is not None else part for part in parts)
        return replace(self, values=values, scale=scale, mask=mask)


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def computed(call: Callable[[_core.ThreadPool, Tensor], None], dtype: torch.dtype, *shape: int) -> Tensor:
    """What `call` writes into a poisoned tensor between guards, the same for any number of threads.

    The tensors that it closes over, its inputs, keep their bits.
    """
    found, read = [], [cell.cell_contents for cell in call.__closure__ or ()]
    inputs = [tensor for tensor in read if isinstance(tensor, Tensor) and tensor.is_floating_point()]
    for threads in (1, 2, 5):
        out = Guarded.make(shape, dtype)
        with unwritten(*inputs):
            call(_core.ThreadPool(threads), out.tensor)
        out.check()
        found.append(out.tensor)
    assert all(torch.equal(found[0], other) for other in found[1:])
    return found[0]


@pytest.mark.parametrize("count", [1, 255, 257, 9001])
@pytest.mark.parametrize("kind", KINDS)
@each_dtype
def test_pointwise(dtype: torch.dtype, kind: str, count: int) -> None:
    x = (3 * rand(1, count)).to(dtype)
    ours = computed(lambda p, out: _core.pointwise(p, x, out, scale=0.7, shift=0.2, activation=kind), dtype, count)
    exact, peer = (activation(scale_shift(x.to(d), 0.7, 0.2), kind) for d in (torch.float64, dtype))
    assert_as_good_as_peer(ours, exact, peer, 0.7 * x.double().abs() + 0.2, 4)


@each_dtype
def test_pointwise_in_place_and_at_the_ends(dtype: torch.dtype) -> None:
    x = torch.tensor([-torch.inf, -1e30, -100.0, -1.0, 0.0, 1.0, 100.0, 1e30, torch.inf], dtype=dtype)
    for kind in ("relu", "tanh"):
        out = x.clone()
        _core.pointwise(_core.ThreadPool(1), out, out, activation=kind)
        torch.testing.assert_close(out, activation(x, kind))
    nan = torch.tensor([torch.nan], dtype=dtype)
    _core.pointwise(_core.ThreadPool(1), nan, nan, activation="tanh")
    assert nan.isnan().all()


@pytest.mark.parametrize("scale, shift", [(2.0, -1.0), (1 / 3, 0.0), (1.0, 0.0)])
@each_dtype
def test_scale_shift(dtype: torch.dtype, scale: float, shift: float) -> None:
    x = rand(2, 3, 1001).to(dtype)
    ours = computed(lambda p, out: _core.pointwise(p, x, out, scale=scale, shift=shift), dtype, 3, 1001)
    exact, peer = (scale_shift(x.to(d), scale, shift) for d in (torch.float64, dtype))
    assert_as_good_as_peer(ours, exact, peer, abs(scale) * x.double().abs() + abs(shift), 3)
    whole = torch.arange(-100, 101, dtype=dtype)
    assert_integer_exact(computed(lambda p, out: _core.pointwise(p, whole, out, scale=2.0), dtype, 201), 2 * whole)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 6), (2, 70, 7, 5), (1, 129, 2, 9)], ids=str)
@each_dtype
def test_average_pool(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rows, channels, height, width = shape
    size = (rows, (height + 1) // 2, (width + 1) // 2, channels)

    def ours(x: Tensor) -> Tensor:
        given = last(x)
        return computed(lambda p, out: _core.average_pool(p, given, out), dtype, *size).permute(0, 3, 1, 2)

    x = rand(3, *shape).to(dtype)
    assert_as_good_as_peer(ours(x), average_pool(x.double()), average_pool(x), average_pool(x.double().abs()), 4)
    whole = (4 * rand(4, *shape)).round().to(dtype) * 4
    assert_integer_exact(ours(whole), average_pool(whole.double()))


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (17, 9), (20, 30)], ids=str)
@pytest.mark.parametrize("channels", [1, 65])
@each_dtype
def test_area_pool(dtype: torch.dtype, channels: int, size: tuple[int, int]) -> None:
    """Smaller, as large, and larger; a mean over the whole image is one of them."""
    x = (rand(5, 2, channels, 17, 9) + 0.5).to(dtype)
    shape, given = (2, *size, channels), last(x)
    ours = computed(lambda p, out: _core.area_pool(p, given, out), dtype, *shape).permute(0, 3, 1, 2)
    exact, peer = (resize_mask(x.to(d), size) for d in (torch.float64, dtype))
    assert_as_good_as_peer(ours, exact, peer, resize_mask(x.double().abs(), size), 26)


@pytest.mark.parametrize("whole", [True, False])
@each_dtype
def test_residual_add(dtype: torch.dtype, whole: bool) -> None:
    """Rows in another order, values and masks that are broadcast; integers are exact. The reference is the peer."""
    rows, channels, size = 3, 530, (13, 5)

    def draw(seed: int, *shape: int) -> Tensor:
        return (2 * rand(seed, *shape)).round().clamp(-4, 4) if whole else rand(seed, *shape)

    image = draw(30, rows, channels, *size).to(dtype)
    terms = [
        Residual(draw(31, 2, channels, *size).to(dtype), draw(32, 2), (2, 0), draw(33, 2, 1, *size)),
        Residual(draw(34, 1, channels, 1, 1).to(dtype), draw(35, 1)),
        Residual(draw(36, 2, channels, *size).to(dtype), draw(37, 2), (0, 1)),
    ]

    given = [residual_term(term, last(image)) for term in terms]

    def call(pool: _core.ThreadPool, out: Tensor) -> None:
        out.copy_(last(image).flatten(1, 2))
        with unwritten(*(term[name] for term in given for name in ("values", "mask"))):
            _core.residual_add(pool, out, given)

    ours = computed(call, dtype, rows, size[0] * size[1], channels)
    exact, peer = (residual_add(image.to(d), [term.of(d) for term in terms]) for d in (torch.float64, dtype))
    size_of = residual_add(image.double().abs(), [term.of(torch.float64, absolute=True) for term in terms])
    exact, peer, size_of = (last(tensor).flatten(1, 2) for tensor in (exact, peer, size_of))
    if whole:
        assert_integer_exact(ours, exact)
    else:
        assert_as_good_as_peer(ours, exact, peer, size_of, 6)


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda x: x,
    "transposed": lambda x: x.transpose(0, 3),
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "cut out": lambda x: x[1:, :, 2:4, ::2],
    "repeated": lambda x: x[:1, :, :1].expand(4, -1, 3, -1),
    "a line": lambda x: x[0, 0, 0],
    "one element": lambda x: x[0, 0, 0, 0],
    "nothing": lambda x: x[:0],
    "blocks": lambda x: x.unflatten(3, (2, 4)).permute(0, 2, 3, 1, 4),
}


@pytest.mark.parametrize("name", COPIES)
@each_dtype
def test_copy(dtype: torch.dtype, name: str) -> None:
    x = COPIES[name](rand(6, 3, 5, 6, 8).to(dtype))
    assert torch.equal(computed(lambda p, out: _core.copy(p, x, out), dtype, *x.shape), x)


def test_copy_of_ids() -> None:
    ids = torch.arange(35).view(5, 7)
    out = torch.full((7, 5), -1)
    _core.copy(_core.ThreadPool(1), ids.T, out)
    assert torch.equal(out, ids.T)
    with pytest.raises(ValueError, match="x wants int64"):
        _core.copy(_core.ThreadPool(1), ids.int(), out)


@each_dtype
def test_copy_into_another_order(dtype: torch.dtype) -> None:
    x = rand(6, 3, 5, 6, 8).to(dtype)
    turned = computed(lambda p, out: _core.copy(p, x, out.permute(2, 0, 3, 1)), dtype, 5, 8, 3, 6)
    assert torch.equal(turned.permute(2, 0, 3, 1), x)


@each_dtype
def test_copy_into_a_part(dtype: torch.dtype) -> None:
    """What is not named keeps its bits, however many tasks there are."""
    x, whole = rand(7, 40, 33, 20).to(dtype), rand(8, 40, 50, 21).to(dtype)
    wanted = whole.clone()
    wanted[:, 10:43, 1:] = x
    _core.copy(_core.ThreadPool(3), x, whole[:, 10:43, 1:])
    assert torch.equal(whole, wanted)


def test_copies_that_do_not_fit_are_named() -> None:
    pool, x = _core.ThreadPool(1), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"out is \[3, 2\], wants \[2, 3\]"):
        _core.copy(pool, x, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="another dtype"):
        _core.copy(pool, x, torch.zeros(2, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="in one place"):
        _core.copy(pool, x, torch.zeros(1, 3).expand(2, 3))
    with pytest.raises(ValueError, match="in one place"):
        _core.copy(pool, x, torch.zeros(4).as_strided((2, 3), (1, 1)))
    with pytest.raises(ValueError, match="8 sides at most"):
        _core.copy(pool, torch.zeros([1] * 9), torch.zeros([1] * 9))


@each_dtype
def test_embedding(dtype: torch.dtype) -> None:
    tokens, positions = rand(9, 30, 37).to(dtype), rand(10, 8, 37).to(dtype)
    ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(11))
    ours = computed(lambda p, out: _core.embedding(p, ids, tokens, positions, out), dtype, 3, 7, 37)
    assert torch.equal(ours, embedding(ids, tokens, positions))


def test_a_float32_table_is_rounded_where_it_is_read() -> None:
    tokens, positions = rand(9, 30, 37), rand(10, 8, 37).bfloat16()
    ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(11))
    ours = computed(lambda p, out: _core.embedding(p, ids, tokens, positions, out), torch.bfloat16, 3, 7, 37)
    assert torch.equal(ours, embedding(ids, tokens.bfloat16(), positions))
    with pytest.raises(ValueError, match="positions has another dtype"):
        _core.embedding(_core.ThreadPool(1), ids, tokens, positions.float(), torch.zeros(3, 7, 37).bfloat16())


def test_ids_that_there_are_not_are_refused() -> None:
    pool, tokens, out = _core.ThreadPool(1), torch.zeros(30, 4), torch.zeros(1, 2, 4)
    for bad in (-1, 30):
        with pytest.raises(IndexError, match=f"an id is {bad}, wants 0 to 29"):
            _core.embedding(pool, torch.tensor([[0, bad]]), tokens, tokens, out)
    with pytest.raises(ValueError, match=r"positions is \[1, 4\], wants \[2, 4\] or longer"):
        _core.embedding(pool, torch.tensor([[0, 1]]), tokens, tokens[:1], out)
    with pytest.raises(ValueError, match="ids wants int64"):
        _core.embedding(pool, torch.zeros(1, 2), tokens, tokens, out)
    with pytest.raises(ValueError, match="x wants float32, float16 or bfloat16"):
        _core.pointwise(pool, torch.zeros(3, dtype=torch.int64), torch.zeros(3))
    with pytest.raises(ValueError, match="x wants float32 or bfloat16"):
        _core.average_pool(pool, torch.zeros(1, 2, 2, 4).half(), torch.zeros(1, 1, 1, 4).half())


@pytest.mark.parametrize("end", [19, 21, None], ids=str)
@each_dtype
def test_end_token(dtype: torch.dtype, end: int | None) -> None:
    """The first of several, one at the last place, none at all, the largest id."""
    x = rand(12, 4, 6, 33).to(dtype)
    ids = torch.tensor([[3, 19, 0, 4, 19, 1], [5, 6, 7, 8, 9, 19], [1, 2, 3, 2, 1, 0], [20, 20, 19, 20, 1, 2]])
    ours = computed(lambda p, out: _core.end_token(p, x, ids, out, end=end), dtype, 4, 33)
    assert torch.equal(ours, end_token(x, ids, end))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dim, freq_shift", [(320, 0), (8, 1), (7, 0)])
@each_dtype
def test_time_embedding(dtype: torch.dtype, dim: int, freq_shift: int, flip: bool) -> None:
    t, rates = torch.tensor([0.0, 1.0, 77.5, 401.0, 999.0]), frequencies(dim, freq_shift)
    ours = computed(lambda p, out: _core.time_embedding(p, t, rates, out, cosines_first=flip), dtype, t.shape[0], dim)
    angles = (t[:, None] * rates).double()
    halves = (angles.cos(), angles.sin()) if flip else (angles.sin(), angles.cos())
    exact = F.pad(torch.cat(halves, 1), (0, dim % 2))
    peer = time_embedding(t, dim, flip_sin_to_cos=flip, freq_shift=freq_shift, dtype=dtype)
    assert_as_good_as_peer(ours, exact, peer, torch.ones_like(exact), 1)


def last(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).contiguous()
