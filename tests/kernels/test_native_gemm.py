"""linear and conv2d of the C++ core: the acceptance rule, exact cases, and rows that do not know their neighbours."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bridle_kernels import _core, available_isas
from bridle_kernels.activation import activation
from numerics import Guarded, assert_as_good_as_peer, assert_integer_exact, unwritten

_OF_BFLOAT16 = ("avx512_bf16", "amx_bf16")
VARIANTS = [(isa, torch.float32) for isa in available_isas() if isa not in _OF_BFLOAT16]
VARIANTS += [(isa, torch.bfloat16) for isa in available_isas() if isa in ("scalar", *_OF_BFLOAT16)]
VARIANTS += [("emulated_amx", torch.bfloat16)]
each_variant = pytest.mark.parametrize(("isa", "dtype"), VARIANTS, ids=lambda value: str(value).removeprefix("torch."))

SIZES = [
    (1, 2, 1),
    (5, 6, 63),
    (7, 320, 64),
    (97, 322, 65),
    (33, 640, 130),
    (200, 1000, 31),
    (95, 34, 129),
    (3, 23042, 5),
]
"""m, K, N, around the edges of tiles, blocks and panels."""
ACTIVATED = [((97, 322, 65), kind) for kind in ("silu", "relu", "gelu", "quick_gelu", "tanh")]
ACTIVATED += [((7, 320, 64), kind) for kind in ("gelu", "tanh")]
CONVOLUTIONS = [
    ((4,), 8, 3, 1, (1, 1, 1, 1), None, (2, 5, 7)),
    ((32,), 65, 3, 2, (1, 1, 1, 1), None, (1, 9, 6)),
    ((16, 8), 32, 3, 1, (1, 1, 1, 1), None, (3, 4, 4)),
    ((10,), 12, 3, 2, (0, 1, 0, 1), None, (2, 6, 6)),
    ((8,), 20, 3, 1, (1, 1, 1, 1), (6, 10), (2, 3, 5)),
    ((8, 4), 20, 3, 2, (0, 1, 2, 0), (5, 9), (2, 3, 5)),
    ((4,), 66, 3, 1, (1, 1, 1, 1), (11, 13), (3, 4, 3)),
    ((6, 2), 7, 1, 1, (0, 0, 0, 0), None, (2, 3, 3)),
    ((319,), 17, 3, 1, (1, 1, 1, 1), None, (1, 3, 4)),
    ((320,), 65, 3, 2, (1, 1, 1, 1), None, (1, 5, 3)),
    ((321, 6), 9, 3, 1, (1, 1, 1, 1), None, (1, 2, 4)),
    ((640,), 5, 1, 1, (0, 0, 0, 0), None, (1, 2, 5)),
    ((2560,), 33, 3, 1, (1, 1, 1, 1), None, (1, 1, 5)),
]
"""Channels of the sources (in bfloat16 the next even number), outputs, kernel, stride, padding, size after upsampling,
(R, h, w)."""
CONVOLVED = ("", "silu", "relu", "gelu", "quick_gelu", "tanh")
"""Activations, of which each case has one."""


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(seed: int, *shape: int) -> Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def packed(weight: Tensor, widths: list[int], isa: str, dtype: torch.dtype) -> _core.PackedWeights:
    return _core.PackedWeights(weight.float().contiguous(), widths, str(dtype).removeprefix("torch."), isa)


def linear(
    x: Tensor, weight: Tensor, isa: str, threads: int = 2, residual: Tensor | None = None, **named: object
) -> Tensor:
    target = Guarded.make((x.shape[0], weight.shape[0]), x.dtype)
    weights = packed(weight, [x.shape[1]], isa, x.dtype)
    with unwritten(x, residual, named.get("bias")):
        _core.linear(_core.ThreadPool(threads), weights, x, target.tensor, residual=residual, **named)
    target.check()
    return target.tensor


@pytest.mark.parametrize(("size", "kind"), [*((size, "") for size in SIZES), *ACTIVATED], ids=str)
@each_variant
def test_linear(isa: str, dtype: torch.dtype, size: tuple[int, int, int], kind: str) -> None:
    """Sums from far below 0 to far above: three times a normal number and more."""
    m, k, n = size
    x, weight, bias = (3 * rand(1, m, k)).to(dtype), (rand(2, n, k) / k**0.5).to(dtype), rand(3, n)
    residual = rand(4, m, n).to(dtype)
    ours = linear(x, weight, isa, bias=bias, residual=residual, activation=kind)
    wide = [t.double() for t in (x, weight, bias, residual)]
    exact = F.linear(*wide[:3]) + wide[3]
    peer = F.linear(x, weight, bias.to(dtype)) + residual
    magnitude = wide[0].abs() @ wide[1].abs().T + bias.abs() + wide[3].abs()
    if kind:
        exact, peer = activation(exact, kind), activation(peer, kind)
    assert_as_good_as_peer(ours, exact, peer, magnitude, 320 + k // 320 + 4)


@pytest.mark.parametrize("size", SIZES, ids=str)
@each_variant
def test_linear_of_integers_is_exact(isa: str, dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    m, k, n = size
    x, weight, bias, residual = integers(5, m, k), integers(6, n, k), integers(7, n), integers(8, m, n)
    ours = linear(x.to(dtype), weight.to(dtype), isa, bias=bias, residual=residual.to(dtype))
    assert_integer_exact(ours, F.linear(x.double(), weight.double(), bias.double()) + residual)


@pytest.mark.parametrize("size", SIZES, ids=str)
@each_variant
def test_gated_linear(isa: str, dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    """value * gelu(gate), gates from far below 0 to far above."""
    m, k, n = size
    x, weight, bias = rand(1, m, k).to(dtype), (rand(2, 2 * n, k) / k**0.5).to(dtype), rand(3, 2 * n)
    bias[n:] = torch.linspace(-7, 7, n) if n > 1 else bias[n:]
    target = Guarded.make((m, n), dtype)
    weights = _core.PackedWeights(weight.float(), [k], str(dtype).removeprefix("torch."), isa, gated=True)
    with unwritten(x, bias):
        _core.linear(_core.ThreadPool(2), weights, x, target.tensor, bias=bias)
    target.check()
    exact, peer = (
        value * F.gelu(gate)
        for value, gate in (
            F.linear(x.to(kind), weight.to(kind), bias.to(kind)).chunk(2, -1) for kind in (torch.float64, dtype)
        )
    )
    value, gate = (x.double().abs() @ weight.double().abs().T + bias.abs()).chunk(2, -1)
    assert_as_good_as_peer(target.tensor, exact, peer, value * gate, 320 + k // 320 + 8)


@each_variant
def test_rows_do_not_know_their_neighbours(isa: str, dtype: torch.dtype) -> None:
    """Nor does the number of threads matter. A NaN in one row stays there."""
    x, weight = rand(8, 131, 322).to(dtype), rand(9, 70, 322).to(dtype)
    together = linear(x, weight, isa, threads=1)
    for threads in (2, 3, 7):
        assert torch.equal(linear(x, weight, isa, threads), together)
    for row in (0, 5, 96, 130):
        assert torch.equal(linear(x[row : row + 1].clone(), weight, isa)[0], together[row])
    x[64] = torch.nan
    poisoned_run = linear(x, weight, isa)
    others = torch.arange(131) != 64
    assert torch.equal(poisoned_run[others], together[others]) and poisoned_run[64].isnan().all()


def conv2d(sources: list[Tensor], weight: Tensor, isa: str, case: tuple, **named: object) -> Tensor:
    """sources: [R, C, h, w]. Returns [R, N, h', w']."""
    _, outputs, kernel, stride, padding, upsample, (rows, height, width) = case
    dtype = sources[0].dtype
    widths = [source.shape[1] for source in sources] * kernel**2
    weights = packed(weight.permute(0, 2, 3, 1).reshape(outputs, -1), widths, isa, dtype)
    full_height, full_width = upsample or (height, width)
    out_width = (full_width + padding[0] + padding[1] - kernel) // stride + 1
    out_height = (full_height + padding[2] + padding[3] - kernel) // stride + 1
    target = Guarded.make((rows * out_height * out_width, outputs), dtype)
    last = [source.permute(0, 2, 3, 1).contiguous() for source in sources]
    pool = _core.ThreadPool(2)
    options = {"kernel": [kernel, kernel], "stride": stride, "padding": list(padding), "upsample": upsample or ()}
    with unwritten(*last, *(named.get(name) for name in ("bias", "shift", "residual"))):
        _core.conv2d(pool, weights, last, target.tensor, **options, **named)
    target.check()
    return target.tensor.view(rows, out_height, out_width, outputs).permute(0, 3, 1, 2)


def widths_of(case: tuple, dtype: torch.dtype) -> list[int]:
    """Of the sources: bfloat16 wants even ones."""
    return [c + c % 2 if dtype == torch.bfloat16 else c for c in case[0]]


def torch_conv2d(x: Tensor, weight: Tensor, case: tuple) -> Tensor:
    _, _, _, stride, padding, upsample, _ = case
    x = x if upsample is None else F.interpolate(x, upsample, mode="nearest")
    return F.conv2d(F.pad(x, padding), weight, stride=stride)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@each_variant
def test_conv2d(isa: str, dtype: torch.dtype, case: tuple) -> None:
    _, outputs, kernel, *_, (rows, height, width) = case
    channels = widths_of(case, dtype)
    sources = [rand(10 + i, rows, c, height, width).to(dtype) for i, c in enumerate(channels)]
    weight = (rand(20, outputs, sum(channels), kernel, kernel) / (kernel**2 * sum(channels)) ** 0.5).to(dtype)
    bias, shift = rand(21, outputs), rand(22, rows, outputs)
    x = torch.cat(sources, 1)
    plain = torch_conv2d(x.double(), weight.double(), case)
    residual = rand(23, *plain.shape).to(dtype)
    added = (bias + shift)[:, :, None, None]
    flat = residual.permute(0, 2, 3, 1).reshape(-1, outputs).contiguous()
    kind = CONVOLVED[CONVOLUTIONS.index(case) % len(CONVOLVED)]
    ours = conv2d(sources, weight, isa, case, bias=bias, shift=shift, residual=flat, activation=kind)
    exact = plain + added.double() + residual.double()
    peer = (torch_conv2d(x, weight, case) + added.to(dtype)) + residual
    magnitude = torch_conv2d(x.double().abs(), weight.double().abs(), case) + added.abs() + residual.abs()
    if kind:
        exact, peer = activation(exact, kind), activation(peer, kind)
    assert_as_good_as_peer(ours, exact, peer, magnitude, kernel**2 * sum(channels) + 4)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@each_variant
def test_conv2d_of_integers_is_exact(isa: str, dtype: torch.dtype, case: tuple) -> None:
    _, outputs, kernel, *_, (rows, height, width) = case
    channels = widths_of(case, dtype)
    sources = [integers(30 + i, rows, c, height, width) for i, c in enumerate(channels)]
    weight = integers(40, outputs, sum(channels), kernel, kernel)
    ours = conv2d([s.to(dtype) for s in sources], weight.to(dtype), isa, case)
    assert_integer_exact(ours, torch_conv2d(torch.cat(sources, 1).double(), weight.double(), case))


def test_what_does_not_fit_is_named() -> None:
    pool, x, out = _core.ThreadPool(1), rand(1, 3, 8), torch.zeros(3, 4)
    weights = _core.PackedWeights(rand(2, 4, 8), [8])
    with pytest.raises(ValueError, match=r"x is \[3, 7\], wants \[3, 8\]"):
        _core.linear(pool, weights, rand(1, 3, 7), out)
    with pytest.raises(ValueError, match=r"out is \[3, 5\], wants \[3, 4\]"):
        _core.linear(pool, weights, x, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"bias is \[5\], wants \[4\]"):
        _core.linear(pool, weights, x, out, bias=torch.zeros(5))
    with pytest.raises(ValueError, match="x has another dtype"):
        _core.linear(pool, weights, x.bfloat16(), out)
    with pytest.raises(ValueError, match="x is not contiguous"):
        _core.linear(pool, weights, rand(1, 8, 3).T, out)
    with pytest.raises(ValueError, match="a width is 7, wants an even number"):
        _core.PackedWeights(rand(2, 4, 7), [7], "bfloat16", "scalar")
    with pytest.raises(ValueError, match=r"weights have spans \[8\], want"):
        _core.conv2d(pool, weights, [rand(3, 1, 2, 2, 8)], out, kernel=[3, 3])
    with pytest.raises(ValueError, match="threads is 0"):
        _core.ThreadPool(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 0}, "stride wants 1 or more"),
        ({"upsample": [0, 2]}, "upsample wants nothing or two numbers of 1 or more"),
        ({"upsample": [2]}, "upsample wants nothing or two numbers of 1 or more"),
        ({"padding": [0, -1, 0, 0]}, "padding wants numbers of 0 or more"),
        ({"padding": [0, 0, 0, 0]}, "source is less high than the kernel"),
        ({"out": None}, "out is None"),
        ({"residual": torch.zeros(0, 9)}, r"residual is \[0, 9\], wants \[1, 4\]"),
    ],
)
def test_convolutions_that_make_no_sense_are_named(changes: dict, message: str) -> None:
    weights = _core.PackedWeights(rand(2, 4, 18), [2] * 9)
    named = {"out": torch.zeros(1, 4), "kernel": [3, 3], **changes}
    with pytest.raises(ValueError, match=message):
        _core.conv2d(_core.ThreadPool(1), weights, [rand(3, 1, 1, 1, 2)], **named)


def test_no_rows_are_no_work() -> None:
    weights = _core.PackedWeights(rand(2, 4, 8), [8])
    nothing = Guarded.make((0, 4))
    _core.linear(_core.ThreadPool(2), weights, torch.zeros(0, 8), nothing.tensor)
    taps = _core.PackedWeights(rand(2, 4, 18), [2] * 9)
    _core.conv2d(_core.ThreadPool(2), taps, [torch.zeros(0, 3, 3, 2)], nothing.tensor, kernel=[3, 3])
    nothing.check()
    with pytest.raises(ValueError, match=r"out is \[0, 5\], wants \[0, 4\]"):
        _core.linear(_core.ThreadPool(2), weights, torch.zeros(0, 8), torch.zeros(0, 5))


@each_variant
def test_silu_of_huge_numbers(isa: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[-1e38, 0.0], [-100.0, 0.0], [0.0, 0.0], [1e38, 0.0], [torch.nan, 0.0]]).to(dtype)
    out = linear(x, torch.tensor([[1.0, 0.0]]).to(dtype), isa, activation="silu")[:, 0].float()
    assert torch.equal(out[:3], torch.zeros(3)) and out[3] == x[3, 0].float() and out[4].isnan()
