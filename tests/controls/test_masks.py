"""Masks: shapes to pixels, pixels to the resolutions of the U-Net."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from torch import Tensor

from bridle import masks
from bridle.errors import LimitError, RequestError
from bridle.networks.layout import level_sizes

SIZES = [(64, 64), (120, 72), (136, 200), (88, 520)]
FACTOR = 8
LEVELS = 4


def random_masks(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def strided_sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """What padded strided convolutions make of a latent."""
    x = torch.zeros(1, 1, height, width)
    sizes = [(height, width)]
    for _ in range(levels - 1):
        x = F.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
        sizes.append((x.shape[-2], x.shape[-1]))
    return sizes


def nearest_levels(planes: Tensor, factor: int, levels: int) -> list[Tensor]:
    return [masks.nearest_latent(planes, factor * 2**level) for level in range(levels)]


@pytest.mark.parametrize("size", [(64, 64), (65, 89), (1, 7), (33, 2), (17, 23)])
def test_level_sizes_are_those_of_strided_convolutions(size: tuple[int, int]) -> None:
    assert list(level_sizes(size, 5)) == strided_sizes(*size, 5)


@pytest.mark.parametrize("size", SIZES)
def test_every_rule_gives_the_sizes_of_the_network(size: tuple[int, int]) -> None:
    planes = random_masks(1, 2, *size)
    expected = strided_sizes(size[0] // FACTOR, size[1] // FACTOR, LEVELS)
    for rule in (nearest_levels, masks.area_levels, masks.bicubic_levels):
        found = rule(planes, FACTOR, LEVELS)
        assert [tuple(plane.shape) for plane in found] == [(2, *cells) for cells in expected]
        torch.testing.assert_close(rule(planes[1], FACTOR, LEVELS)[2], found[2][1], rtol=0, atol=0)


def test_box_takes_pixels_by_their_centres() -> None:
    mask = masks.box_mask("box", (0.25, 0.1, 0.75, 0.5), (10, 6))
    assert mask.dtype == torch.float32
    columns = [0.25 <= (i + 0.5) / 6 < 0.75 for i in range(6)]
    rows = [0.1 <= (i + 0.5) / 10 < 0.5 for i in range(10)]
    expected = torch.tensor(rows, dtype=torch.float32)[:, None] * torch.tensor(columns, dtype=torch.float32)
    assert torch.equal(mask, expected)
    assert torch.equal(masks.box_mask("box", [0, 0, 1, 1], (7, 5)), torch.ones(7, 5))


@pytest.mark.parametrize("edge", [0.5, 1 / 3, 0.41, 0.97])
def test_boxes_with_a_common_edge_tile_the_image(edge: float) -> None:
    size = (37, 53)
    left, right = masks.box_mask("box", (0, 0, edge, 1), size), masks.box_mask("box", (edge, 0, 1, 1), size)
    assert torch.equal(left + right, torch.ones(size))


@pytest.mark.parametrize("box", [(0.25, 0.1, 0.75, 0.5), (0.0, 0.0, 1.0, 1.0), (0.13, 0.41, 0.59, 0.97)])
def test_polygon_of_a_box_is_the_box(box: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = box
    for corners in ([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], [(x0, y1), (x1, y1), (x1, y0), (x0, y0)]):
        assert torch.equal(masks.polygon_mask("polygon", corners, (37, 53)), masks.box_mask("box", box, (37, 53)))


def inside(corners: list[tuple[float, float]], x: float, y: float) -> bool:
    """Even-odd rule for one point."""
    found = False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 <= y) != (y1 <= y) and x >= x0 + (x1 - x0) * (y - y0) / (y1 - y0):
            found = not found
    return found


@pytest.mark.parametrize("count", [3, 5, 12])
def test_polygons_by_the_even_odd_rule(count: int) -> None:
    """Random corners cross each other, so holes are covered too."""
    random = np.random.default_rng(count)
    corners = [(float(x), float(y)) for x, y in random.random((count, 2))]
    mask = masks.polygon_mask("polygon", corners, (29, 41))
    expected = [[inside(corners, (j + 0.5) / 41, (i + 0.5) / 29) for j in range(41)] for i in range(29)]
    assert torch.equal(mask, torch.tensor(expected, dtype=torch.float32))
    assert 0 < float(mask.mean()) < 1


def test_triangles_of_a_square_tile_it() -> None:
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    parts = [masks.polygon_mask("p", [corners[i], corners[(i + 1) % 4], (0.4, 0.7)], (31, 43)) for i in range(4)]
    assert torch.equal(sum(parts, torch.zeros(31, 43)), torch.ones(31, 43))


@pytest.mark.parametrize("kind", ["bool", "uint8", "float", "image", "tensor", "double"])
def test_masks_of_every_kind(kind: str) -> None:
    bits = np.random.default_rng(3).random((24, 16)) > 0.5
    value = {
        "bool": bits,
        "uint8": bits.astype(np.uint8) * 255,
        "float": bits.astype(np.float32),
        "double": bits.astype(np.float64),
        "image": Image.fromarray(bits.astype(np.uint8) * 255),
        "tensor": torch.tensor(bits, dtype=torch.float32),
    }[kind]
    mask = masks.read_mask("mask", value, (24, 16))
    assert mask.dtype == torch.float32
    assert torch.equal(mask, torch.tensor(bits, dtype=torch.float32))


def test_grey_values_are_kept() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = masks.read_mask("mask", Image.fromarray(grey), (16, 16))
    torch.testing.assert_close(mask, torch.arange(256).reshape(16, 16) / 255.0, rtol=0, atol=1e-7)


def test_masks_of_another_size_are_stretched_as_diffusers_does() -> None:
    """diffusers rounds to bytes after each of the two passes: half a byte, passed on by a kernel of norm 1.4, twice."""
    grey = Image.fromarray(np.random.default_rng(4).integers(90, 160, (40, 24), dtype=np.uint8))
    mask = masks.read_mask("mask", grey, (64, 96))
    expected = IPAdapterMaskProcessor(do_binarize=False).preprocess(grey, 64, 96)[0, 0]
    torch.testing.assert_close(mask, expected, rtol=0, atol=1.5 / 255)


@pytest.mark.parametrize(
    "value",
    [
        np.full((16, 16), np.nan),
        np.full((16, 16), np.inf),
        np.full((16, 16), 1.5),
        np.full((16, 16), -0.1),
        np.ones((1, 1, 16, 16)),
        np.ones(16),
        np.zeros((16, 16)),
        np.zeros((16, 16), dtype=bool),
        Image.new("L", (16, 16)),
        np.full((16, 16), 2, dtype=np.int64),
        np.ones((0, 16)),
        torch.ones(2, 16, 16),
        "no such file.png",
        None,
        0.5,
    ],
    ids=lambda value: f"{type(value).__name__}{getattr(value, 'shape', '')}",
)
def test_bad_masks(value: object) -> None:
    with pytest.raises(RequestError) as caught:
        masks.read_mask("regions[1].mask", value, (16, 16))
    assert caught.value.field.startswith("regions[1].mask")


@pytest.mark.parametrize(
    "value",
    [
        (0.0, 0.0, 1.1, 1.0),
        (-0.1, 0.0, 1.0, 1.0),
        (0.5, 0.0, 0.5, 1.0),
        (0.0, 0.9, 1.0, 0.1),
        (0.0, 0.0, 1.0),
        (0.0, math.nan, 1.0, 1.0),
        (0.0, 0.0, math.inf, 1.0),
        (0.0, 0.0, "1", 1.0),
        (0.0, 0.0, 0.001, 1.0),
        "0011",
        None,
    ],
)
def test_bad_boxes(value: object) -> None:
    with pytest.raises(RequestError) as caught:
        masks.box_mask("regions[1].box", value, (64, 64))
    assert caught.value.field.startswith("regions[1].box")


@pytest.mark.parametrize(
    "value",
    [
        [(0, 0), (1, 1)],
        [(0, 0), (1, 1), (2, 0)],
        [(0, 0), (1, 1), (0.5, math.nan)],
        [(0, 0), (0.5, 0.5), (1, 1)],
        [(0, 0), (1, 1), (1,)],
        [(0, 0), (1, 1), 1],
        [(0.5, 0.5), (0.5, 0.501), (0.501, 0.5)],
        "abc",
        7,
    ],
)
def test_bad_polygons(value: object) -> None:
    with pytest.raises(RequestError) as caught:
        masks.polygon_mask("regions[1].polygon", value, (64, 64))
    assert caught.value.field.startswith("regions[1].polygon")


def test_polygons_have_a_limit() -> None:
    with pytest.raises(LimitError):
        masks.read_polygon("polygon", [(0.0, 0.0)] * (masks.MAX_POINTS + 1))


def test_masks_that_vanish_at_a_coarse_level_are_found() -> None:
    mask = masks.box_mask("box", (9 / 64, 0, 15 / 64, 1), (64, 64))
    with pytest.raises(RequestError, match=r"grid of \(8, 8\)"):
        masks.check_covers("box", masks.nearest_latent(mask, FACTOR))


@pytest.mark.parametrize("size", SIZES)
def test_nearest_is_interpolate_at_the_latent(size: tuple[int, int]) -> None:
    planes = random_masks(5, 3, *size)
    expected = F.interpolate(planes[:, None], (size[0] // FACTOR, size[1] // FACTOR), mode="nearest")[:, 0]
    assert torch.equal(masks.nearest_latent(planes, FACTOR), expected)


@pytest.mark.parametrize("size", SIZES)
def test_nearest_follows_strided_convolutions(size: tuple[int, int]) -> None:
    """A stride-2 convolution that copies its centre gives the next level."""
    centre = torch.zeros(1, 1, 3, 3)
    centre[0, 0, 1, 1] = 1.0
    levels = nearest_levels(random_masks(6, *size), FACTOR, LEVELS)
    for finer, coarser in pairwise(levels):
        assert torch.equal(F.conv2d(finer[None, None], centre, stride=2, padding=1)[0, 0], coarser)


def plain_means(mask: Tensor, side: int) -> Tensor:
    height, width = mask.shape
    rows, columns = range(0, height, side), range(0, width, side)
    return torch.stack([torch.stack([mask[i : i + side, j : j + side].mean() for j in columns]) for i in rows])


@pytest.mark.parametrize("size", SIZES)
def test_area_is_the_mean_of_a_cell(size: tuple[int, int]) -> None:
    mask = random_masks(7, *size)
    for level, found in enumerate(masks.area_levels(mask, FACTOR, LEVELS)):
        torch.testing.assert_close(found, plain_means(mask, FACTOR * 2**level), rtol=1e-5, atol=1e-6)


def test_a_level_larger_than_the_image() -> None:
    mask = random_masks(8, 8, 16)
    torch.testing.assert_close(masks.area_latent(mask, 64), mask.mean()[None, None])
    assert torch.equal(masks.nearest_latent(mask, 64), mask[:1, :1])


def by_diffusers(mask: Tensor, cells: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return IPAdapterMaskProcessor.downsample(mask[None], 1, cells, 1)[0, :, 0]


@pytest.mark.parametrize("size", [(512, 512), (512, 768), (520, 712), (768, 320), (1024, 1024)])
def test_bicubic_is_the_rule_of_diffusers(size: tuple[int, int]) -> None:
    mask = (random_masks(9, *size) > 0.5).float()
    for found in masks.bicubic_levels(mask, FACTOR, LEVELS):
        assert torch.equal(found.flatten(), by_diffusers(mask, found.numel()))
        assert float(found.min()) < 0 < 1 < float(found.max())


def test_bicubic_keeps_its_rows_where_diffusers_shears_them() -> None:
    """A mask of the left half: equal rows at every level, whatever the size of the image."""
    sheared = 0
    for height in range(64, 264, 8):
        mask = masks.box_mask("box", (0, 0, 0.5, 1), (height, 200))
        for found in masks.bicubic_levels(mask, FACTOR, LEVELS):
            torch.testing.assert_close(found, found[:1].expand_as(found), rtol=0, atol=1e-5)
            sheared += not torch.equal(by_diffusers(mask, found.numel()), found.flatten())
    assert sheared > 0, "diffusers agrees everywhere: the docstring is out of date"


def test_normalised_masks_add_up_to_one_where_covered() -> None:
    planes = random_masks(10, 3, 9, 11) * (random_masks(11, 3, 9, 11) > 0.6)
    planes[:, 0] = 0.0
    planes[0, 1] = 1e-30
    found = masks.normalise(planes)
    covered = planes.sum(0) > 0
    assert 0 < int(covered.sum()) < covered.numel()
    torch.testing.assert_close(found.sum(0)[covered], torch.ones(int(covered.sum())))
    assert torch.equal(found.sum(0)[~covered], torch.zeros(int((~covered).sum())))
    alone = planes[1] > 0
    alone &= (planes[0] == 0) & (planes[2] == 0)
    assert torch.equal(found[1][alone], torch.ones(int(alone.sum())))
    torch.testing.assert_close(found[0] * planes[1], found[1] * planes[0])
