"""Heat maps of words and their pictures."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor

from bridle.heat_maps import GAP, MAX_COLUMNS, normalise_each, overlay, sheet, word_maps


def captured(seed: int, *sizes: tuple[int, int]) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.rand((2, 4, *size), generator=random) for size in sizes]


def point(size: tuple[int, int], y: int, x: int) -> Tensor:
    plane = torch.zeros(size)
    plane[y, x] = 1.0
    return plane


def test_a_map_points_where_its_columns_do() -> None:
    """Odd sizes, as of a 520 x 712 image; both levels agree on the place of word 1, opposite ends for word 0."""
    levels = [torch.zeros(1, 2, 65, 89), torch.zeros(1, 2, 33, 45)]
    levels[0][0, 0], levels[1][0, 0] = point((65, 89), 3, 5), 3 * point((33, 45), 30, 40)
    levels[0][0, 1], levels[1][0, 1] = point((65, 89), 60, 80), point((33, 45), 30, 40)
    maps = word_maps(levels, [[0], [1]], (520, 712))
    assert maps.shape == (1, 2, 520, 712) and maps.dtype == torch.float32
    for word, place in ((0, (30.5 * 520 / 33, 40.5 * 712 / 45)), (1, (60.5 * 8, 80.5 * 8))):
        y, x = divmod(int(maps[0, word].argmax()), 712)
        assert abs(y - place[0]) <= 8 and abs(x - place[1]) <= 8


def bicubic(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Two dense matrices of Keys' kernel with a = -0.75, pixel centres aligned, the border repeated."""

    def weights(length: int, target: int) -> Tensor:
        matrix = torch.zeros(target, length, dtype=torch.float64)
        for i in range(target):
            at = (i + 0.5) * length / target - 0.5
            for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
                d, a = abs(at - j), -0.75
                near = ((a + 2) * d - (a + 3)) * d * d + 1
                far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
                matrix[i, min(max(j, 0), length - 1)] += near if d <= 1 else far if d < 2 else 0.0
        return matrix

    return weights(plane.shape[0], size[0]) @ plane.double() @ weights(plane.shape[1], size[1]).T


def test_word_maps_by_their_definition() -> None:
    levels = captured(1, (9, 6), (5, 3))
    levels[0] = levels[0] ** 8
    found = word_maps(levels, [[2], [0, 3]], (36, 24))
    for image in range(2):
        for word, indices in enumerate([[2], [0, 3]]):
            planes = [level[image, indices].mean(0) for level in levels]
            enlarged = [bicubic(plane, (36, 24)) for plane in planes]
            assert float(torch.stack(enlarged).min()) < 0
            wanted = sum((plane.clamp(min=0) for plane in enlarged), torch.zeros(36, 24).double())
            torch.testing.assert_close(found[image, word].double(), wanted, rtol=1e-5, atol=1e-5)


def test_normalised_by_word() -> None:
    maps = word_maps(captured(2, (8, 8)), [[0], [1], [2, 3]], (16, 16))
    maps[:, 1] *= 0.25
    each = normalise_each(maps)
    assert torch.equal(each.amax((2, 3)), torch.ones(2, 3))
    torch.testing.assert_close(each * maps.amax((2, 3), keepdim=True), maps)


def test_maps_without_attention_stay_zero() -> None:
    nothing = torch.zeros(1, 2, 8, 8)
    assert torch.equal(normalise_each(nothing), nothing)


def lightness(rgb: np.ndarray) -> np.ndarray:
    """OKLab's L of sRGB bytes [..., 3]."""
    value = rgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    found: np.ndarray = np.cbrt(cones) @ np.array([0.2104542553, 0.7936177850, -0.0040720468])
    return found


def test_colours_get_lighter_evenly() -> None:
    black = Image.new("RGB", (256, 1))
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    colours = np.asarray(overlay(black, ramp), dtype=np.float64)[0] / 0.6
    light = lightness(np.clip(colours, 0, 255))
    assert np.abs(light - np.linspace(0.16, 0.94, 256)).max() < 0.02
    assert (np.diff(light[::8]) > 0).all()


def test_overlays_show_image_and_map() -> None:
    random = np.random.default_rng(3)
    image = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    heat = random.random((20, 30), dtype=np.float32)
    shown = overlay(image, heat)
    assert (shown.mode, shown.size) == ("RGB", (30, 20))
    other = overlay(Image.new("RGB", (30, 20)), heat)
    assert ImageChops.difference(shown, other).getbbox() is not None
    assert ImageChops.difference(shown, overlay(image, heat * 0)).getbbox() is not None
    assert overlay(image.convert("L"), heat).mode == "RGB"


def test_map_and_image_have_one_size() -> None:
    with pytest.raises(ValueError, match=r"\(30, 20\)"):
        overlay(Image.new("RGB", (30, 20)), np.zeros((30, 20), dtype=np.float32))


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_sheets_hold_every_overlay_and_its_word(count: int) -> None:
    image = Image.new("RGB", (96, 64), "green")
    random = np.random.default_rng(count)
    maps = {f"word {i}": random.random((64, 96), dtype=np.float32) for i in range(count)}
    page = sheet(image, maps)
    columns, rows = min(count, MAX_COLUMNS), -(-count // MAX_COLUMNS)
    cell = page.height // rows
    assert page.width == (96 + GAP) * columns - GAP and cell > 64
    for index, heat in enumerate(maps.values()):
        left, top = index % columns * (96 + GAP), index // columns * cell
        assert (
            ImageChops.difference(page.crop((left, top, left + 96, top + 64)), overlay(image, heat)).getbbox() is None
        )
        caption = page.crop((left, top + 64, left + 96, top + cell)).convert("L")
        assert np.asarray(caption).min() < 100


def test_long_words_stay_below_their_picture() -> None:
    image, heat = Image.new("RGB", (96, 64)), np.zeros((64, 96), dtype=np.float32)
    long = "a phrase far longer than\nits picture is wide"
    page = sheet(image, {"a": heat, long: heat, "": heat})
    captions = page.crop((0, 64, page.width, page.height)).convert("L")
    left, right = (np.asarray(captions.crop((x, 0, x + 96, captions.height))) for x in (0, 2 * (96 + GAP)))
    between = captions.crop((96, 0, 96 + GAP, captions.height))
    assert (np.asarray(between) == 255).all()
    alone = sheet(image, {"a": heat}).crop((0, 64, 96, page.height)).convert("L")
    np.testing.assert_array_equal(left, np.asarray(alone))
    assert (right == 255).all()
