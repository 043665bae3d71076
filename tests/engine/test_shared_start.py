"""Rows that begin alike: the CPU backend computes what they share once, and no bit of the result shows it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from control_cases import CONTROLS, asked
from runs import latents, request

import bridle
from bridle.backends import cpu
from bridle.networks import layers
from bridle.networks.shared_start import SharedStart, points_of_start, shared_stages, shared_start, starts_alike

Start = SharedStart | None


@pytest.fixture(scope="module")
def native(map_folder: Path) -> bridle.Engine:
    return bridle.load(map_folder, backend="cpu")


def alone(monkeypatch: pytest.MonkeyPatch, start: Callable[[list[torch.Tensor]], Start] = lambda _: None) -> None:
    """From now on no row shares anything, or what `start` says."""
    monkeypatch.setattr(cpu, "shared_start", start)


def bits(result: bridle.Result) -> list[torch.Tensor]:
    maps = [] if result.maps is None else [torch.as_tensor(result.maps[word]) for word in sorted(result.maps)]
    return [torch.as_tensor(result.latents), *maps]


@pytest.mark.parametrize("name", CONTROLS)
def test_no_bit_of_a_control_shows_it(name: str, native: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = native.sample(asked(CONTROLS[name]))
    alone(monkeypatch)
    single = native.sample(asked(CONTROLS[name]))
    assert all(map(torch.equal, bits(shared), bits(single)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_bit_of_a_batch_shows_it(dtype: str, xl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's rows part at the second level only."""
    engine, requests = bridle.load(xl_folder, backend="cpu", dtype=dtype), [request(seed=seed) for seed in (1, 2, 1)]
    shared = engine.sample(requests)
    alone(monkeypatch)
    for one, other in zip(shared, engine.sample(requests), strict=True):
        assert all(map(torch.equal, bits(one), bits(other)))


def test_rows_that_differ_must_not_share(native: bridle.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the comparisons above: a start that is shared wrongly is seen."""
    right = [latents(native, seed=seed) for seed in (1, 2)]
    alone(monkeypatch, lambda inputs: SharedStart((0,), (0,) * inputs[0].shape[0]))
    together = native.sample([request(seed=1), request(seed=2)])
    assert torch.equal(torch.as_tensor(together[0].latents), right[0])
    assert not torch.equal(torch.as_tensor(together[1].latents), right[1])


def test_first_layers_see_one_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    conv = layers.conv

    def watched(ops: object, weights: object, name: str, x: torch.Tensor, **options: object) -> torch.Tensor:
        seen[name] = (x[0] if isinstance(x, tuple) else x).shape[0]
        return conv(ops, weights, name, x, **options)

    monkeypatch.setattr(layers, "conv", watched)
    bridle.load(folder, backend="cpu").sample(request(guidance_scale=5.0))
    assert seen["conv_in"] == seen["down_blocks.0.resnets.0.conv2"] == 1
    assert seen["down_blocks.0.downsamplers.0.conv"] == seen["conv_out"] == 2


def test_kinds_are_told_apart_by_all_inputs() -> None:
    sample = torch.tensor([[1.0], [2.0], [1.0], [1.0]])
    time = torch.tensor([[5.0], [5.0], [5.0], [6.0]])
    assert shared_start([sample, time]) == SharedStart((0, 1, 3), (0, 1, 0, 2))
    assert shared_start([sample]) == SharedStart((0, 1), (0, 1, 0, 0))
    assert shared_start([torch.tensor([0.0, -0.0])]) is None


def test_what_parts_rows_before_their_context(folder: Path, xl_folder: Path) -> None:
    first, second = (bridle.load(path, backend="reference").backend.model.unet.config for path in (folder, xl_folder))
    assert shared_stages(first) == 0 and points_of_start(first) == ("conv_in", "block.0")
    assert shared_stages(second) > 0
    for config in (first, second):
        own = (None,) * config.levels
        read = tuple(torch.tensor([0, 0]) for _ in own)
        assert starts_alike(config, (), None) and starts_alike(config, ("mid", "skip.0"), own)
        assert not starts_alike(config, (), read)
        for point in points_of_start(config):
            assert not starts_alike(config, ("mid", point), None)
