"""Counter-based noise: published answers of Philox4x32-10, and what makes numbers standard normal and independent."""

import pytest
import torch
from torch import Tensor

from bridle_kernels.counter_noise import choices, reference, standard_normal, uniform

SHAPE = (4, 64, 64)
ONES = 2**32 - 1
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
"""Random123's known answers."""


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], want: str) -> None:
    """Beside counters of zeros, so that an answer cannot come from the whole tensor's."""
    words = [torch.tensor([0, word]) for word in counter]
    found = reference.philox4x32((words[0], words[1], words[2], words[3]), key)
    assert " ".join(f"{int(word[1]):08x}" for word in found) == want
    assert " ".join(f"{int(word[0]):08x}" for word in found) == want or any(counter)


def unit(noise: Tensor) -> Tensor:
    """[n], of length 1."""
    return torch.nn.functional.normalize(noise.double().flatten(), dim=0)


def correlation(one: Tensor, other: Tensor) -> float:
    """Times the square root of the number of elements: a standard normal number where they are independent."""
    return float(unit(one) @ unit(other)) * one.numel() ** 0.5


def test_moments() -> None:
    """Each within five of its own standard deviations."""
    noise = torch.stack([standard_normal(seed, 3, 0, SHAPE) for seed in range(64)]).double()
    count = noise.numel()
    assert torch.isfinite(noise).all()
    for power, want, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(float((noise**power).mean()) - want) < 5 * (variance / count) ** 0.5, power
    for bound, share in ((1.0, 0.6826895), (2.0, 0.9544997), (4.0, 0.99993666)):
        assert abs(float((noise.abs() < bound).double().mean()) - share) < 5 * (share * (1 - share) / count) ** 0.5


NEIGHBOURS = {
    "seed": (8, 3, 1),
    "high word of the seed": (7 + 2**32, 3, 1),
    "step": (7, 4, 1),
    "draw": (7, 3, 2),
    "step and draw swapped": (7, 1, 3),
}


@pytest.mark.parametrize("other", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_other_numbers_give_independent_noise(other: tuple[int, int, int]) -> None:
    assert abs(correlation(standard_normal(7, 3, 1, SHAPE), standard_normal(*other, SHAPE))) < 5


def test_elements_are_independent_of_each_other() -> None:
    noise = standard_normal(7, 3, 1, SHAPE).flatten()
    for lag in (1, 2, 4, 64, 4096):
        assert abs(correlation(noise[lag:], noise[:-lag])) < 5
        assert abs(correlation(noise[lag:].square() - 1, noise[:-lag].square() - 1)) < 5


def test_a_counter_that_ignores_one_of_its_words_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the two tests above."""
    rounds = reference.philox4x32
    monkeypatch.setattr(reference, "philox4x32", lambda c, key: rounds((c[0] // 2, c[1], c[3], c[3]), (key[0], 0)))
    noise = standard_normal(7, 3, 1, SHAPE).flatten()
    assert correlation(noise[1:], noise[:-1]) > 40
    for name in ("high word of the seed", "step"):
        assert correlation(noise, standard_normal(*NEIGHBOURS[name], SHAPE)) > 100


def test_a_part_is_a_part_and_a_negative_seed_its_64_bits() -> None:
    noise = standard_normal(2**64 - 5, 2, 0, (1000,))
    assert torch.equal(noise[:77], standard_normal(-5, 2, 0, (77,)))
    assert torch.equal(noise.reshape(10, 100), standard_normal(2**64 - 5, 2, 0, (10, 100)))


def test_extreme_words_are_finite_and_float32_is_near_float64() -> None:
    words = torch.tensor([0, 1, 255, 256, 2**31 - 1, 2**31, ONES - 256, ONES])
    first, second = (words.repeat(8), words.repeat_interleave(8))
    exact = reference.box_muller(first, second, torch.float64)
    found = reference.box_muller(first, second, torch.float32)
    assert torch.isfinite(found).all() and float(found.abs().max()) == pytest.approx(5.7681, abs=1e-4)
    assert ((found.double() - exact).abs() <= 8 * 2.0**-24 * exact.abs()).all()


def test_too_many_elements_are_refused() -> None:
    with pytest.raises(ValueError, match="counter_noise: shape"):
        standard_normal(0, 0, 0, (2**17, 2**16))


def test_uniform_numbers_and_choices_are_the_first_word() -> None:
    word = reference.philox4x32((torch.arange(6), *(torch.full((6,), n) for n in (3, 2, 0))), (7, 9))[0]
    seed = 7 + 9 * 2**32
    assert (uniform(seed, 2, 3, (2, 3)).double() * 2**24).flatten().tolist() == [int(w) // 2**8 for w in word]
    for options in (1, 20, 2**31 - 1):
        chosen = choices(seed, torch.tensor([[2], [5]]), torch.tensor(3), torch.arange(6), options)
        assert chosen[0].tolist() == [int(w) * options // 2**32 for w in word]


def test_the_largest_word_is_below_one_and_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "philox4x32", lambda c, key: (torch.full_like(c[0], ONES),) * 4)
    assert float(uniform(0, 0, 0, (1,))) == 1 - 2.0**-24
    zero = torch.tensor(0)
    assert choices(0, zero, zero, zero, 2**31 - 1).tolist() == 2**31 - 2
    for options in (0, 2**31):
        with pytest.raises(ValueError, match="options"):
            choices(0, zero, zero, zero, options)
