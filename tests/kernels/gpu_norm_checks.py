"""Checks of the Triton norms, GEGLU, residuals and upsampling: on a GPU, or in Triton's interpreter on the CPU."""

from collections.abc import Callable, Iterator
from unittest import mock

import far_address_checks
import torch
import torch.nn.functional as F
from residual_term import Term
from torch import Tensor

from bridle_kernels.group_norm import triton as group_norm_kernels
from bridle_kernels.ops import ReferenceOps
from bridle_kernels.triton_ops import TritonOps
from device_references import plain_arithmetic
from numerics import assert_as_good_as_peer, assert_integer_exact

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Check = tuple[str, Callable[[], None]]
Compute = Callable[[ReferenceOps, Callable[[Tensor], Tensor]], Tensor]
OURS = TritonOps()


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def accepted(compute: Compute, magnitude: float, depth: int, dtype: torch.dtype, device: str) -> None:
    """The acceptance rule for compute(ops, convert), which calls one op on converted tensors."""
    ours, again = (compute(OURS, lambda t: t.to(device, dtype)) for _ in range(2))
    assert torch.equal(ours, again), "two runs differ"
    with plain_arithmetic():
        exact = compute(ReferenceOps(), lambda t: t.to(device, dtype).double())
        peer = compute(ReferenceOps(), lambda t: t.to(device, dtype))
    assert_as_good_as_peer(ours, exact, peer, exact.abs() + magnitude, depth)


def checks(device: str) -> Iterator[Check]:
    """Names, and functions that raise AssertionError."""
    for dtype in DTYPES:
        for name, (compute, magnitude, depth) in COMPUTED.items():
            yield (
                f"{name} {dtype}",
                lambda a=(compute, magnitude, depth, dtype): accepted(*a, device),
            )
        for shape in () if device == "cpu" else PUBLISHED:
            # Two rows are of a U-Net, one is of an autoencoder, which has norms alone.
            for name, (make, magnitude, depth) in list(OF_SHAPES.items())[: len(OF_SHAPES) if shape[0] == 2 else 1]:
                yield (
                    f"{name} {shape} {dtype}",
                    lambda m=make, s=shape, a=(magnitude, depth, dtype): accepted(m(s), *a, device),
                )
        yield f"upsample {dtype}", lambda dtype=dtype: upsampled(dtype, device)
        yield f"product of two images {dtype}", lambda dtype=dtype: added_products(dtype, device)
    yield "rows without a residual", lambda: untouched(device)
    yield "concatenated once", lambda: concatenated_once(device)
    yield "large means", lambda: large_means(device)
    yield "statistics that are known", lambda: known_statistics(device)
    if device == "cpu":
        yield from far_address_checks.checks()


def group_norm(ops: ReferenceOps, to: Callable[[Tensor], Tensor]) -> Tensor:
    x = to(randn(1, 2, 20, 9, 11) * 3 + 1)
    return ops.group_norm(x, to(randn(2, 20)), to(randn(3, 20)), 4, 1e-5)


def group_norm_pair(ops: ReferenceOps, to: Callable[[Tensor], Tensor]) -> Tensor:
    pair = (to(randn(4, 2, 12, 7, 5)), to(randn(5, 2, 28, 7, 5) + 2))
    return ops.group_norm(pair, to(randn(6, 40)), to(randn(7, 40)), 8, 1e-6, activation="silu")


def group_norm_affine(ops: ReferenceOps, to: Callable[[Tensor], Tensor]) -> Tensor:
    affine = (to(randn(8, 3, 40)), to(randn(9, 3, 40)))
    x = to(randn(10, 3, 40, 33, 37)).contiguous(memory_format=torch.channels_last)
    return ops.group_norm(x, to(randn(11, 40)), to(randn(12, 40)), 4, 1e-5, activation="silu", affine=affine)


def layer_norm(ops: ReferenceOps, to: Callable[[Tensor], Tensor]) -> Tensor:
    return ops.layer_norm(to(randn(13, 2, 7, 321) * 2 + 1), to(randn(14, 321)), to(randn(15, 321)), 1e-5)


def geglu(ops: ReferenceOps, to: Callable[[Tensor], Tensor]) -> Tensor:
    return ops.geglu(to(randn(16, 2, 9, 24)), to(randn(17, 2 * 37, 24) * 0.2), to(randn(18, 2 * 37)))


def residual_add(ops: ReferenceOps, to: Callable[[Tensor], Tensor]) -> Tensor:
    return ops.residual_add(to(randn(28, 3, 6, 5, 7)), _terms(to))


def skip_connection(ops: ReferenceOps, to: Callable[[Tensor], Tensor]) -> Tensor:
    found = ops.skip_connection(to(randn(32, 3, 11, 5, 7)), to(randn(28, 3, 6, 5, 7)), _terms(to))
    return found if isinstance(found, Tensor) else torch.cat(found, 1)


def _terms(to: Callable[[Tensor], Tensor]) -> list[Term]:
    """Strengths, of which one is a column of a table, and masks are float32 whatever the image is."""
    device = to(randn(19, 1)).device
    mask, table = randn(19, 2, 1, 5, 7).sigmoid().to(device), randn(21, 3, 13).to(device)
    return [
        Term(to(randn(20, 3, 6, 5, 7)), table[:, 5]),
        Term(to(randn(22, 2, 6, 5, 7)), randn(23, 2).to(device), (2, 0), mask),
        Term(to(randn(24, 1, 6, 1, 1)), table[1:2, 7], (1,)),
        Term(to(randn(26, 1, 6, 5, 7)), randn(27, 1).to(device), None, mask[:1]),
    ]


COMPUTED: dict[str, tuple[Compute, float, int]] = {
    "group norm": (group_norm, 8.0, 64),
    "group norm of two images": (group_norm_pair, 8.0, 64),
    "group norm, affine, slices": (group_norm_affine, 16.0, 64),
    "layer norm": (layer_norm, 8.0, 64),
    "geglu": (geglu, 8.0, 48),
    "residuals": (residual_add, 8.0, 16),
    "skip connection": (skip_connection, 8.0, 16),
}


PUBLISHED = [
    (2, 320, 64, 64),
    (2, 640, 32, 32),
    (2, 1280, 8, 8),
    (2, 320, 96, 96),
    (2, 320, 128, 128),
    (2, 1280, 32, 32),
    (1, 128, 256, 256),
    (1, 256, 128, 128),
    (1, 512, 64, 64),
]
"""Of SD 1.5, of SD 2 at 768 pixels, of SDXL and of autoencoders, for a GPU."""
Shape = tuple[int, int, int, int]


def norm_of(shape: Shape) -> Compute:
    """Of one image, with SiLU."""
    one, two = 1 + randn(61, shape[1]), randn(62, shape[1])
    x = randn(60, *shape) * 3 + 1
    return lambda ops, to: ops.group_norm(to(x), to(one), to(two), 32, 1e-5, activation="silu")


def norm_of_pair(shape: Shape) -> Compute:
    """Of an image and a skip of half as many channels."""
    half, channels = shape[1] // 2, shape[1] + shape[1] // 2
    x, skip = randn(63, *shape), randn(64, shape[0], half, *shape[2:]) + 2
    one, two = randn(65, channels), randn(66, channels)
    return lambda ops, to: ops.group_norm((to(x), to(skip)), to(one), to(two), 32, 1e-5)


def norm_of_tokens(shape: Shape) -> Compute:
    """A token per pixel."""
    x, one, two = randn(67, *shape).flatten(2).transpose(1, 2) * 2 + 1, randn(68, shape[1]), randn(69, shape[1])
    return lambda ops, to: ops.layer_norm(to(x), to(one), to(two), 1e-5)


def geglu_of(shape: Shape) -> Compute:
    """Of 64 tokens, four times as wide as the image's channels."""
    x, weight = randn(70, shape[0], 64, shape[1]), randn(71, 8 * shape[1], shape[1]) / shape[1] ** 0.5
    bias = randn(72, 8 * shape[1])
    return lambda ops, to: ops.geglu(to(x), to(weight), to(bias))


def residuals_of(shape: Shape) -> Compute:
    """Of a ControlNet, and of another that has a mask."""
    x, first, second = (randn(seed, *shape) for seed in (73, 74, 75))
    mask, table = randn(76, shape[0], 1, *shape[2:]).sigmoid(), randn(77, shape[0], 13)

    def compute(ops: ReferenceOps, to: Callable[[Tensor], Tensor]) -> Tensor:
        image = to(x)
        own = table.to(image.device)
        terms = [Term(to(first), own[:, 5]), Term(to(second), own[:, 7], None, mask.to(image.device))]
        return ops.residual_add(image, terms)

    return compute


OF_SHAPES: dict[str, tuple[Callable[[Shape], Compute], float, int]] = {
    "group norm": (norm_of, 8.0, 64),
    "group norm of two images": (norm_of_pair, 8.0, 64),
    "layer norm": (norm_of_tokens, 8.0, 64),
    "geglu": (geglu_of, 8.0, 1280),
    "residuals": (residuals_of, 8.0, 16),
}


def upsampled(dtype: torch.dtype, device: str) -> None:
    """A convolution by one pixel of weight 1 copies bits."""
    x, one = randn(29, 2, 1, 4, 3).to(device, dtype), torch.ones(1, 1, 1, 1, dtype=dtype, device=device)
    for size in ((8, 6), (4, 9), (7, 5)):
        ours = OURS.conv2d(x, one, padding=0, upsample=size)
        assert_integer_exact(ours, F.interpolate(x.double(), size, mode="nearest"))


def added_products(dtype: torch.dtype, device: str) -> None:
    """The product of the first image and the whole convolution are rounded to the dtype before the residual is added.

    Nothing is concatenated, which the reference does.
    """
    first, second, weight, bias, residual = (
        values.to(device)
        for values in (
            randn(52, 2, 12, 7, 5), randn(53, 2, 28, 7, 5), randn(54, 16, 40, 1, 1) * 0.2, randn(55, 16),
            randn(56, 2, 16, 7, 5),
        )
    )  # fmt: skip

    def compute(ops: ReferenceOps, to: Callable[[Tensor], Tensor]) -> Tensor:
        return ops.conv2d((to(first), to(second)), to(weight), to(bias), padding=0, residual=to(residual))

    with mock.patch.object(torch, "cat", side_effect=torch.cat) as copies:
        ours = compute(OURS, lambda t: t.to(dtype))
        assert copies.call_count == 0
        with plain_arithmetic():
            peer = compute(ReferenceOps(), lambda t: t.to(dtype))
        assert copies.call_count == 1
    exact, sizes = (compute(ReferenceOps(), to) for to in (lambda t: t.to(dtype).double(), lambda t: t.double().abs()))
    rounded = F.conv2d(first.double(), weight[:, :12].double(), bias.double()).abs() + (exact - residual.double()).abs()
    depth, unit = 42, torch.finfo(dtype).eps / 2
    assert_as_good_as_peer(ours, exact, peer, sizes + rounded * unit / (depth * 2.0**-24), depth)


def untouched(device: str) -> None:
    """Rows that no residual names keep their bits, and NaN of one row stays there."""
    x, values = randn(30, 3, 4, 3, 3).to(device), torch.full((1, 4, 3, 3), torch.nan, device=device)
    x[0, 0, 0, 0] = -0.0
    out = OURS.residual_add(x.clone(), [Term(values, torch.ones(1, device=device), (1,))])
    assert torch.equal(out[::2].view(torch.int32), x[::2].view(torch.int32)) and out[1].isnan().all()


def concatenated_once(device: str) -> None:
    """Residuals are added while the concatenation is written: nothing is concatenated after that, as the reference does."""
    x, skip, values = (randn(seed, 2, width, 6, 5).to(device) for seed, width in ((37, 8), (38, 16), (39, 16)))
    weight, terms = randn(40, 8, 24, 1, 1).to(device), [Term(values, torch.ones(2, device=device))]

    def concatenations(ops: ReferenceOps) -> int:
        with mock.patch.object(torch, "cat", wraps=torch.cat) as concatenate:
            ops.conv2d(ops.skip_connection(x, skip, terms), weight, padding=0)
        return concatenate.call_count

    assert concatenations(OURS) == 0 and concatenations(ReferenceOps()) == 1


def large_means(device: str) -> None:
    """Statistics do not cancel: a mean 1000 times the deviation."""
    x, one, zero = (
        (randn(31, 1, 8, 40, 41) + 1000.0).to(device),
        torch.ones(8, device=device),
        torch.zeros(8, device=device),
    )
    ours = OURS.group_norm(x, one, zero, 2, 1e-5)
    exact = F.group_norm(x.double(), 2, one.double(), zero.double(), 1e-5)
    assert (ours.double() - exact).abs().max() < 2e-3


def known_statistics(device: str) -> None:
    """Statistics are computed once and serve any number of norms of the same images, which differ in no bit."""
    x, skip = (randn(seed, 2, 70, width).to(device) for seed, width in ((57, 8), (58, 24)))
    one, two, scale = (randn(seed, *shape).to(device) for seed, shape in ((59, (32,)), (60, (32,)), (61, (2, 32))))
    for images in ((torch.cat((x, skip), 2),), (x, skip)):
        known = group_norm_kernels.statistics(images, 4, 1e-5)
        for named in ({}, {"silu": True}, {"scale": scale, "shift": scale}):
            wanted = group_norm_kernels.group_norm(images, one, two, 4, 1e-5, **named)
            with mock.patch.object(group_norm_kernels, "statistics", side_effect=AssertionError("computed again")):
                ours = group_norm_kernels.group_norm(images, one, two, 4, 1e-5, known=known, **named)
                other = group_norm_kernels.group_norm(images, one, two, 4, 1e-5, known=known + 1.0, **named)
            assert torch.equal(ours, wanted) and not torch.equal(other, wanted)
