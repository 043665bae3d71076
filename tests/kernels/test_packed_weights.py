"""Packed weights: their bytes against a plain definition, whatever they are packed from and by how many threads."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bridle_kernels import _core, available_isas

OF_BFLOAT16 = ("avx512_bf16", "amx_bf16")
VARIANTS = [(isa, torch.float32) for isa in available_isas() if isa not in OF_BFLOAT16]
VARIANTS += [(isa, torch.bfloat16) for isa in (*available_isas(), "emulated_amx") if isa not in ("avx2", "avx512")]
each_variant = pytest.mark.parametrize(("isa", "dtype"), VARIANTS, ids=lambda value: str(value).removeprefix("torch."))
PANEL = {"scalar": 8, "avx2": 16}
"""Outputs of a panel; 64 where nothing is said."""


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bits(weights: "_core.PackedWeights") -> bytes:
    return weights.memory.tobytes()


def expected(weight: Tensor, isa: str, dtype: torch.dtype, gated: bool = False) -> bytes:
    """Of weights [N, K] or [2 N, K]: panels, each [K][panel] or in pairs [K / 2][panel][2], padded to cache lines."""
    width, pairs = PANEL.get(isa, 64), dtype == torch.bfloat16 and isa != "scalar"
    halves = weight.to(dtype).chunk(2) if gated else (weight.to(dtype),)
    outputs = width // len(halves)
    packed = b""
    for first in range(0, halves[0].shape[0], outputs):
        panel = torch.zeros(width, weight.shape[1], dtype=dtype)
        for place, half in enumerate(halves):
            part = half[first : first + outputs]
            panel[place * outputs : place * outputs + part.shape[0]] = part
        order = panel.unflatten(1, (-1, 2)).transpose(0, 1) if pairs else panel.T
        raw = order.contiguous().view(torch.uint8).numpy().tobytes()
        packed += raw + bytes(-len(raw) % 64)
    return packed


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("size", [(1, 2), (7, 6), (63, 34), (130, 10)], ids=str)
@each_variant
def test_every_byte_is_where_it_belongs(isa: str, dtype: torch.dtype, size: tuple[int, int], gated: bool) -> None:
    n, k = size
    weight = rand(1, 2 * n if gated else n, k)
    wanted = expected(weight, isa, dtype, gated)
    for threads in (1, 2, 5):
        packed = _core.PackedWeights(weight, [k], name(dtype), isa, gated=gated, pool=_core.ThreadPool(threads))
        assert bits(packed) == wanted
    assert bits(_core.PackedWeights(weight, [k], name(dtype), isa, gated=gated)) == wanted
    narrow = weight.bfloat16()
    packed = _core.PackedWeights(narrow, [k], name(dtype), isa, gated=gated, pool=_core.ThreadPool(2))
    assert bits(packed) == expected(narrow.float(), isa, dtype, gated)


@each_variant
def test_any_strides_and_several_tensors(isa: str, dtype: torch.dtype) -> None:
    """Convolutions as they are stored, rows that lie apart, and stacks are the bytes of one compact matrix."""
    weight = rand(2, 21, 6, 3, 2)
    flat = weight.permute(0, 2, 3, 1).reshape(21, -1)
    wanted = expected(flat, isa, dtype)
    widths = [2, 4] * 6
    apart = torch.zeros(21, 50)
    apart[:, :36] = flat
    for given in (
        flat,
        weight.flatten(2).transpose(1, 2),
        weight.contiguous(memory_format=torch.channels_last).flatten(2).transpose(1, 2),
        apart[:, :36],
        flat.T.contiguous().T,
        [flat[:5], flat[5:6], flat[6:]],
    ):
        assert bits(_core.PackedWeights(given, widths, name(dtype), isa)) == wanted


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=name)
def test_what_cannot_be_rounded_stays_what_it_is(source: torch.dtype) -> None:
    """Ties go to even, the largest values to infinity, and NaN stays NaN, as PyTorch rounds."""
    edges = [
        1.00390625,
        1.01171875,
        -1.00390625,
        3.3895314e38,
        3.4028235e38,
        float("inf"),
        float("nan"),
        -0.0,
        1e-40,
        0,
    ]
    weight = torch.tensor([edges]).to(source)
    packed = _core.PackedWeights(weight, [10], "bfloat16", "scalar").memory.view(np.int16)[:80:8]
    found = torch.from_numpy(packed.copy()).view(torch.bfloat16)
    torch.testing.assert_close(found, weight[0].bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert found.signbit()[7]


@each_variant
def test_bytes_packed_before_are_the_same_weights(isa: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """From a read-only mapping, which lives as long as the weights."""
    weight, x = rand(3, 70, 34).to(dtype), rand(4, 9, 34).to(dtype)
    packed = _core.PackedWeights(weight, [34], name(dtype), isa)
    (tmp_path / "packed").write_bytes(bits(packed))
    with (tmp_path / "packed").open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped = _core.PackedWeights.packed_before(memoryview(mapping), 70, [34], name(dtype), isa)
    del mapping
    results = []
    for weights in (packed, mapped):
        out = torch.full((9, 70), torch.nan, dtype=dtype)
        _core.linear(_core.ThreadPool(2), weights, x, out)
        results.append(out)
    assert torch.equal(*results) and bits(mapped) == bits(packed)


def test_memory_is_read_only_and_outlives_the_weights() -> None:
    weight = rand(5, 8, 4)
    memory = _core.PackedWeights(weight, [4], isa="scalar").memory
    assert not memory.flags.writeable
    assert memory.tobytes() == expected(weight, "scalar", torch.float32)


def test_layouts_differ_where_the_bytes_do() -> None:
    named = {(isa, dtype): _core.weight_layout(name(dtype), isa) for isa, dtype in VARIANTS}
    weight = rand(6, 70, 34)
    packed = {key: expected(weight, *key) for key in VARIANTS}
    for one in VARIANTS:
        for other in VARIANTS:
            assert (named[one] == named[other]) == (packed[one] == packed[other]), (one, other)


def test_what_does_not_fit_is_named() -> None:
    weight, bytes_of = rand(7, 4, 6), np.zeros(8 * 6 * 4, dtype=np.uint8)
    for given, message in (
        (weight.half(), "weight is float16, wants float32 or bfloat16"),
        (weight[0], r"weight is \[6\], wants \[N, K\] or \[N, taps, channels\]"),
        (rand(7, 4, 5), r"weight has \[4, 5\] elements, wants \[4, 6\]"),
        ([], "n is 0, wants 1 or more"),
        ([weight, weight.bfloat16()], "weights that are stacked want one dtype"),
        ([weight, rand(7, 3, 5)], "weights that are stacked want one dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.PackedWeights(given, [6], isa="scalar")
    with pytest.raises(ValueError, match="weight has 3 channels, wants an even number"):
        _core.PackedWeights(rand(7, 4, 2, 3), [2, 4], "bfloat16", "emulated_amx")
    with pytest.raises(ValueError, match="an even number of rows to be gated"):
        _core.PackedWeights(rand(7, 3, 6), [6], isa="scalar", gated=True)
    with pytest.raises(ValueError, match="packed weights are 192 bytes, want 384"):
        _core.PackedWeights.packed_before(bytes_of, 9, [6], isa="scalar")
    with pytest.raises(ValueError, match="from a multiple of 64 on"):
        _core.PackedWeights.packed_before(np.zeros(300, dtype=np.uint8)[1:193], 4, [6], isa="scalar")
