"""3x3 convolutions of inputs enlarged by two, as four 2x2 convolutions of the small input."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from test_native_gemm import each_variant, integers, packed, rand
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.activation import activation
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.phases import PHASES
from bridle_kernels.recorder import ProgramFrame, Recorder
from bridle_kernels.stored_weights import StoredWeights
from numerics import Guarded, assert_as_good_as_peer, assert_integer_exact, unwritten

Case = tuple[tuple[int, ...], int, tuple[int, int, int]]
CASES: list[Case] = [
    ((8,), 20, (2, 3, 5)),
    ((4,), 65, (3, 1, 1)),
    ((16, 8), 33, (3, 4, 7)),
    ((322,), 70, (2, 7, 5)),
    ((34,), 130, (1, 17, 9)),
    ((6, 2), 7, (2, 1, 13)),
]
"""Channels of the sources, outputs, (R, h, w) of the small input."""
each_case = pytest.mark.parametrize("case", CASES, ids=str)
FLOAT32 = [variant for variant in each_variant.args[1] if variant[1] == torch.float32]
BFLOAT16 = [variant for variant in each_variant.args[1] if variant[1] == torch.bfloat16]
each_bfloat16_variant = pytest.mark.parametrize(("isa", "dtype"), BFLOAT16, ids=lambda value: str(value))
each_float32_variant = pytest.mark.parametrize(("isa", "dtype"), FLOAT32, ids=lambda value: str(value))


def phases(weight: Tensor, channels: Sequence[int], isa: str, dtype: torch.dtype) -> list["_core.PackedWeights"]:
    summed = [phase.weights(weight) for phase in PHASES]
    widths = list(channels) * 4
    return [packed(w.permute(0, 2, 3, 1).reshape(w.shape[0], -1), widths, isa, dtype) for w in summed]


def upsampled(sources: list[Tensor], weight: Tensor, isa: str, threads: int = 2, **named: object) -> Tensor:
    """sources: [R, C, h, w]. Returns [R, N, 2 h, 2 w]."""
    rows, _, height, width = sources[0].shape
    target = Guarded.make((rows * 4 * height * width, weight.shape[0]), sources[0].dtype)
    matrices = phases(weight, [source.shape[1] for source in sources], isa, sources[0].dtype)
    last = [source.permute(0, 2, 3, 1).contiguous() for source in sources]
    with unwritten(*last, *(named.get(name) for name in ("bias", "shift", "residual"))):
        _core.upsampled_conv2d(_core.ThreadPool(threads), matrices, last, target.tensor, **named)
    target.check()
    return target.tensor.view(rows, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)


@pytest.mark.parametrize("activation", ["", "silu"])
@each_case
@each_float32_variant
def test_it_is_the_convolution_of_the_enlarged_input(isa: str, dtype: torch.dtype, case: Case, activation: str) -> None:
    channels, outputs, (rows, height, width) = case
    sources = [rand(10 + i, rows, c, height, width) for i, c in enumerate(channels)]
    weight = rand(20, outputs, sum(channels), 3, 3) / (9 * sum(channels)) ** 0.5
    bias, shift = rand(21, outputs), rand(22, rows, outputs)
    residual = rand(23, rows, outputs, 2 * height, 2 * width)
    flat = residual.permute(0, 2, 3, 1).reshape(-1, outputs).contiguous()
    ours = upsampled(sources, weight, isa, bias=bias, shift=shift, residual=flat, activation=activation)
    x, added = torch.cat(sources, 1), (bias + shift)[:, :, None, None]
    exact = plain(x.double(), weight.double()) + added.double() + residual.double()
    peer = plain(x, weight) + added + residual
    magnitude = plain(x.double().abs(), weight.double().abs()) + added.abs() + residual.abs()
    if activation:
        exact, peer = F.silu(exact), F.silu(peer)
    assert_as_good_as_peer(ours, exact, peer, magnitude, 9 * sum(channels) + 4)


@each_case
@each_bfloat16_variant
def test_phases_in_bfloat16(isa: str, dtype: torch.dtype, case: Case) -> None:
    """The acceptance rule for four convolutions with the weights as they are packed, and each activation."""
    channels, outputs, (rows, height, width) = case
    sources = [rand(10 + i, rows, c, height, width).to(dtype) for i, c in enumerate(channels)]
    weight = rand(20, outputs, sum(channels), 3, 3) / (9 * sum(channels)) ** 0.5
    kind = ("silu", "gelu", "quick_gelu", "relu", "tanh", "silu")[CASES.index(case)]
    ours, x = upsampled(sources, weight, isa, activation=kind), torch.cat(sources, 1)
    exact, peer = (activation(by_phases(x.to(t), weight, dtype, t), kind) for t in (torch.float64, dtype))
    magnitude = by_phases(x.double().abs(), weight.abs(), dtype, torch.float64)
    assert_as_good_as_peer(ours, exact, peer, magnitude, 4 * sum(channels))


def by_phases(x: Tensor, weight: Tensor, packed_in: torch.dtype, dtype: torch.dtype) -> Tensor:
    """In PyTorch, with sums of taps that are rounded to the type in which they are packed."""
    rows, _, height, width = x.shape
    out = torch.empty(rows, weight.shape[0], 2 * height, 2 * width, dtype=dtype)
    for phase in PHASES:
        padded = F.pad(x, (1 - phase.column, phase.column, 1 - phase.line, phase.line))
        taps = phase.weights(weight).to(packed_in).to(dtype)
        out[:, :, phase.line :: 2, phase.column :: 2] = F.conv2d(padded, taps)
    return out


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_stored_weights_are_rounded_once(stored: torch.dtype) -> None:
    """In bfloat16, beside the exact result of the stored weights: no further from it than PyTorch, who rounds each tap.

    Weights that are stored in bfloat16 lose nothing with nine taps, so they keep them.
    """
    weight, x = (rand(1, 96, 80, 3, 3) / 27).to(stored), rand(2, 2, 80, 12, 14).bfloat16()
    exact, peer = plain(x.double(), weight.double()), plain(x, weight.bfloat16())
    nodes, ours = replayed(weight, x)
    assert nodes == ["upsampled_conv2d"]
    error, own = (ours.double() - exact).abs(), (peer.double() - exact).abs()
    assert error.mean() <= 1.1 * own.mean() and error.max() <= 1.25 * own.max()
    twice = by_phases(x.double(), weight.bfloat16().float(), torch.bfloat16, torch.float64).bfloat16()
    assert (twice.double() - exact).abs().mean() > 1.1 * error.mean(), "rounding every tap first would be noticed"
    nodes, same = replayed(weight.bfloat16(), x)
    assert nodes == ["conv2d"] and not torch.equal(same, ours)


def replayed(stored: Tensor, x: Tensor) -> tuple[list[str], Tensor]:
    """The nodes of a network that is one convolution in bfloat16 of an input enlarged by two, and its output."""
    store, pool = PackedWeights(), _core.ThreadPool(2)
    with store.network(StoredWeights({"w": stored}, torch.bfloat16)) as weights:
        recorder = Recorder()
        given = recorder.input("x", tuple(x.shape), torch.bfloat16)
        out = NativeOps(recorder, store).conv2d(given, weights["w"], upsample=(2 * x.shape[2], 2 * x.shape[3]))
        program = recorder.finish([out])
    frame = ProgramFrame(program)
    frame.inputs["x"].copy_(x)
    frame.run(pool)
    return program.plan.nodes, frame.outputs[0].clone()


@each_case
@each_variant
def test_integers_are_exact(isa: str, dtype: torch.dtype, case: Case) -> None:
    """Also in bfloat16: sums of taps are small integers too."""
    channels, outputs, (rows, height, width) = case
    sources = [integers(30 + i, rows, c, height, width) for i, c in enumerate(channels)]
    weight = integers(40, outputs, sum(channels), 3, 3)
    ours = upsampled([source.to(dtype) for source in sources], weight, isa)
    assert_integer_exact(ours, plain(torch.cat(sources, 1).double(), weight.double()))


@each_variant
def test_rows_do_not_know_their_neighbours(isa: str, dtype: torch.dtype) -> None:
    """Nor does the number of threads matter."""
    x, weight = rand(1, 5, 36, 7, 9).to(dtype), rand(2, 70, 36, 3, 3)
    together = upsampled([x], weight, isa, threads=1)
    for threads in (2, 3, 7):
        assert torch.equal(upsampled([x], weight, isa, threads), together)
    for row in range(5):
        assert torch.equal(upsampled([x[row : row + 1]], weight, isa)[0], together[row])


@each_variant
def test_a_nan_reaches_what_reads_its_pixel(isa: str, dtype: torch.dtype) -> None:
    x, weight = rand(1, 2, 8, 4, 5).to(dtype), rand(2, 6, 8, 3, 3)
    x[1, 3, 2, 0] = torch.nan
    reached = upsampled([x], weight, isa).isnan()
    assert torch.equal(reached, plain(x.float(), weight).isnan()) and reached.any()


def recorded(dtype: torch.dtype, packed: PackedWeights, weight: Tensor, **named: object) -> list[str]:
    """The nodes of a convolution of an image of 3 by 5."""
    recorder = Recorder()
    x = recorder.input("x", (2, weight.shape[1], 3, 5), dtype)
    return recorder.finish([NativeOps(recorder, packed).conv2d(x, weight, **named)]).plan.nodes


def test_each_size_packs_what_it_needs() -> None:
    """The nine taps are packed where an image is not twice as large, and only there."""
    store, weight = PackedWeights(), rand(1, 6, 4, 3, 3)
    assert recorded(torch.float32, store, weight, upsample=(6, 10)) == ["upsampled_conv2d"]
    assert len(store) == 4
    for upsample in ((5, 10), (6, 9), (9, 15), (3, 5), None):
        assert recorded(torch.float32, store, weight, upsample=upsample) == ["conv2d"]
        assert len(store) == 5
    assert recorded(torch.float32, store, weight, upsample=(6, 10)) == ["upsampled_conv2d"]
    assert len(store) == 5


def test_other_convolutions_keep_their_taps() -> None:
    weight = rand(1, 6, 4, 3, 3)
    others = [(weight, {"stride": 2}), (weight, {"padding": (0, 1, 0, 1)}), (rand(1, 6, 4, 5, 5), {"padding": 1})]
    for other, named in others:
        assert recorded(torch.float32, PackedWeights(), other, upsample=(6, 10), **named) == ["conv2d"]
    nodes = recorded(torch.bfloat16, PackedWeights(), weight.bfloat16(), upsample=(6, 10))
    assert nodes == ["conv2d"], "sums of taps that are rounded already would be rounded once more"


def test_phases_are_sums_of_taps() -> None:
    """In float32, whatever is stored; lines and columns are not interchangeable."""
    weight = rand(1, 6, 5, 3, 3).bfloat16()
    wide = weight.float()
    w = [[wide[:, :, line, column] for column in range(3)] for line in range(3)]
    wanted = {
        (0, 1): [w[0][0] + w[0][1], w[0][2], w[1][0] + w[2][0] + (w[1][1] + w[2][1]), w[1][2] + w[2][2]],
        (1, 0): [w[0][0] + w[1][0], w[0][1] + w[1][1] + (w[0][2] + w[1][2]), w[2][0], w[2][1] + w[2][2]],
    }
    for phase in PHASES[1:3]:
        found = phase.weights(weight)
        assert found.dtype == torch.float32 and found.shape == (6, 5, 2, 2)
        assert torch.equal(found.flatten(2), torch.stack(wanted[phase.line, phase.column], 2))


def test_what_does_not_fit_is_named() -> None:
    pool, x, weight = _core.ThreadPool(1), rand(1, 1, 2, 3, 4), rand(2, 5, 4, 3, 3)
    matrices, out = phases(weight, [4], "scalar", torch.float32), torch.zeros(24, 5)
    with pytest.raises(ValueError, match="phases are 3, want 4"):
        _core.upsampled_conv2d(pool, matrices[:3], [x], out)
    with pytest.raises(ValueError, match="phases are 0, want 4"):
        _core.upsampled_conv2d(pool, [], [x], out)
    with pytest.raises(ValueError, match="a phase is None"):
        _core.upsampled_conv2d(pool, [None, *matrices[1:]], [x], out)
    with pytest.raises(ValueError, match="one number of outputs and one dtype"):
        other = phases(weight[:3], [4], "scalar", torch.float32)
        _core.upsampled_conv2d(pool, [*matrices[:3], other[3]], [x], out)
    with pytest.raises(ValueError, match="weights have spans"):
        nine = packed(weight.permute(0, 2, 3, 1).reshape(5, -1), [4] * 9, "scalar", torch.float32)
        _core.upsampled_conv2d(pool, [*matrices[:3], nine], [x], out)
    with pytest.raises(ValueError, match=r"out is \[6, 5\], wants \[24, 5\]"):
        _core.upsampled_conv2d(pool, matrices, [x], torch.zeros(6, 5))
    with pytest.raises(ValueError, match=r"residual is \[6, 5\], wants \[24, 5\]"):
        _core.upsampled_conv2d(pool, matrices, [x], out, residual=torch.zeros(6, 5))
