"""The trainer: its seed decides everything, it goes on where it was stopped, and its processes share one gradient."""

from __future__ import annotations

import json
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from gradient_worker import share_a_gradient
from torch import Tensor, nn

import stage
import workers
from autoencoder import build_autoencoder, encode_all, measure_scale
from captions import can_relate, describe
from controls import HINTS, draw_hints
from denoiser import (
    CAPTIONS_PER_SCENE,
    RELATION_REPEATS,
    Denoiser,
    NoisyBatches,
    caption_tokens,
    draw_timesteps,
    drawing_pool,
)
from exported import start_from
from linear_start import start_linear
from scenes import SceneImages, to_signed
from stage import Stage, train
from world import SIZE, render, seeded_scene

SEED = 5


class Stopped(Exception):
    """What a person who presses Ctrl-C raises."""


class Line(nn.Module):
    """Two numbers to be learned, and the inputs that each step has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[float] = []
        self.shown: list[int] = []


def line_stage(module: Line, stop_at: int = 10**9) -> Stage:
    """Learns y = 3x + 1; `stop_at`: the step that is interrupted."""

    def loss(rng: np.random.Generator, share: float) -> Tensor:
        if len(module.seen) == stop_at:
            raise Stopped
        inputs = torch.from_numpy(rng.random((64, 1), np.float32)) + 0.01 * torch.randn(64, 1)
        module.seen.append(float(inputs[0]))
        return (module.layer(inputs) - 3 * inputs - 1).square().mean()

    def show(path: Path) -> None:
        path.touch()
        module.shown.append(len(module.seen))

    return Stage("line", 0.5, module, loss, show, learning_rate=0.1, batch=64, ema_decay=0.9, show_every=5.0)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a tenth of a second later: a budget is a number of steps, on any computer."""
    ticks = count()
    monkeypatch.setattr(stage.time, "monotonic", lambda: next(ticks) / 10)


def trained(out: Path, seed: int = SEED) -> Line:
    torch.manual_seed(seed)
    module = Line()
    train(line_stage(module), out, seed)
    return module


def test_a_stage_learns_saves_logs_and_shows(tmp_path: Path) -> None:
    module = trained(tmp_path)
    assert len(module.seen) == pytest.approx(300, abs=1)
    assert float(module.layer.weight) == pytest.approx(3, abs=0.1) and float(module.layer.bias) == pytest.approx(
        1, abs=0.1
    )
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(50, 50 * len(entries) + 1, 50))
    assert entries[-1]["loss"] < entries[0]["loss"] / 5
    assert len(module.shown) == 6 and len(list((tmp_path / "sheets").iterdir())) == 6


def test_seeds_decide_everything(tmp_path: Path) -> None:
    first, again, other = (trained(tmp_path / name, seed) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert first.seen == again.seen and torch.equal(first.layer.weight, again.layer.weight)
    assert first.seen[:5] != other.seen[:5] and not torch.equal(first.layer.weight, other.layer.weight)


def test_a_stopped_stage_goes_on(tmp_path: Path) -> None:
    stopped = Line()
    with pytest.raises(Stopped):
        train(line_stage(stopped, stop_at=170), tmp_path, SEED)
    saved = torch.load(tmp_path / "state" / "line.pt", weights_only=True)
    assert 100 < saved["step"] <= 170 and not saved["finished"]
    module = trained(tmp_path)
    assert len(module.seen) == pytest.approx(300 - saved["step"], abs=1)
    assert set(module.seen).isdisjoint(stopped.seen)
    assert float(module.layer.weight) == pytest.approx(3, abs=0.1)
    finished = trained(tmp_path)
    assert finished.seen == [] and torch.equal(finished.layer.weight, module.layer.weight)
    assert not finished.layer.weight.requires_grad and not finished.training


def test_an_interrupted_write_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = trained(tmp_path)
    whole = (tmp_path / "state" / "line.pt").read_bytes()
    (tmp_path / "state" / "line.partial").write_bytes(whole[: len(whole) // 2])
    assert torch.equal(trained(tmp_path).layer.weight, module.layer.weight)


def test_the_autoencoder_starts_as_the_mean_colour_of_each_cell() -> None:
    torch.manual_seed(SEED)
    autoencoder = build_autoencoder()
    pictures = to_signed(
        torch.from_numpy(np.stack([render(seeded_scene(seed)) for seed in range(6)])), torch.device("cpu")
    )
    means = nn.functional.avg_pool2d(pictures, 8)
    with torch.no_grad():
        latents = autoencoder.encode(pictures).latent_dist.mean
        decoded = nn.functional.avg_pool2d(autoencoder.decode(latents).sample, 8)
    assert min(correlation(latents[:, colour], means[:, colour]) for colour in range(3)) > 0.9
    assert min(correlation(decoded[:, colour], means[:, colour]) for colour in range(3)) > 0.9
    random = type(autoencoder).from_config(autoencoder.config)
    with torch.no_grad():
        unrelated = nn.functional.avg_pool2d(random(pictures).sample, 8)
    assert min(correlation(unrelated[:, colour], means[:, colour]) for colour in range(3)) < 0.9
    start_linear(random)
    assert torch.equal(random.encoder.conv_in.weight[:8], autoencoder.encoder.conv_in.weight[:8])


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def test_scenes_are_rendered_once_and_encoded_in_order(tmp_path: Path) -> None:
    images = SceneImages(tmp_path / "scenes.u8", 10, first_seed=40)
    assert all(np.array_equal(images.pixels[index], render(seeded_scene(40 + index))) for index in range(10))
    autoencoder, device = build_autoencoder().eval(), torch.device("cpu")
    latents = encode_all(autoencoder, images, tmp_path, device)
    assert latents.shape == (10, 4, SIZE // 8, SIZE // 8)
    with torch.no_grad():
        alone = autoencoder.encode(images.tensor(np.asarray([7]), device)).latent_dist.mean
    torch.testing.assert_close(latents[7].float(), alone[0], rtol=2e-3, atol=2e-3)
    assert float((latents.float() * measure_scale(latents)).std()) == pytest.approx(1, abs=0.01)
    assert torch.equal(encode_all(build_autoencoder(), images, tmp_path, device), latents)


def test_control_images_are_drawn_once_each_from_its_scene(tmp_path: Path) -> None:
    images = SceneImages(tmp_path / "scenes.u8", 6, first_seed=40)
    for name, hint in HINTS.items():
        drawn = draw_hints(name, images)
        for index in range(6):
            assert np.array_equal(drawn[index], hint(seeded_scene(40 + index), images.pixels[index])), name
        assert len(np.unique(drawn)) > 1 and (tmp_path / f"hints-{name}.u8").stat().st_size == drawn.size


def test_captions_are_those_of_their_scenes(tmp_path: Path) -> None:
    tokens = caption_tokens(5, tmp_path / "tokens.npy")
    texts = []
    for seed in range(5):
        rng = np.random.default_rng((seed, 1))
        texts += [describe(seeded_scene(seed), rng).text for _ in range(CAPTIONS_PER_SCENE)]
    assert np.array_equal(tokens.reshape(len(texts), -1), Denoiser().tokens(texts).numpy())


def test_scenes_with_relations_come_more_often() -> None:
    counts = np.bincount(drawing_pool(60), minlength=60)
    wanted = [RELATION_REPEATS if can_relate(seeded_scene(seed)) else 1 for seed in range(60)]
    assert counts.tolist() == wanted and 5 < sum(count > 1 for count in wanted) < 30
    stated = [
        any(describe(seeded_scene(s), np.random.default_rng(n)).claim.relation for n in range(20)) for s in range(60)
    ]
    assert stated == [count > 1 for count in wanted]


def test_batches_mix_latents_and_noise_and_drop_captions(tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    denoiser, device = Denoiser(), torch.device("cpu")
    latents, tokens = torch.randn(6, 4, 16, 16).half(), caption_tokens(6, tmp_path / "tokens.npy")
    batches = NoisyBatches(denoiser, latents, 0.5, tokens, device)
    empty = denoiser.tokens([""])[0]
    indices, noisy, timesteps, drawn, target = batches.draw(64, 0.0)
    level = batches.scheduler.alphas_cumprod[timesteps][:, None, None, None]
    clean = level.sqrt() * noisy - (1 - level).sqrt() * target
    torch.testing.assert_close(clean, latents[indices].float() * 0.5, rtol=1e-3, atol=1e-4)
    for index, row in zip(indices.tolist(), drawn.numpy(), strict=True):
        assert any(np.array_equal(row, caption) for caption in tokens[index])
    assert all(torch.equal(row, empty) for row in batches.draw(8, 1.0)[3])
    half = [torch.equal(row, empty) for row in batches.draw(400, 0.5)[3]]
    assert 0.4 < sum(half) / len(half) < 0.6


def test_timesteps_cover_the_schedule() -> None:
    torch.manual_seed(SEED)
    drawn = draw_timesteps(20_000, torch.device("cpu"))
    assert 0 <= int(drawn.min()) < 5 and 994 < int(drawn.max()) <= 999
    assert 0.6 < float(((drawn > 250) & (drawn < 750)).float().mean()) < 0.8


def test_a_stage_without_minutes_leaves_its_module_alone(tmp_path: Path) -> None:
    module = Line()
    before = module.layer.weight.detach().clone()
    stage_of_nothing = line_stage(module)
    stage_of_nothing.minutes = 0.0
    train(stage_of_nothing, tmp_path, SEED)
    assert module.seen == [] and torch.equal(module.layer.weight, before) and module.shown == [0]


def test_a_run_can_start_from_exported_weights(tmp_path: Path) -> None:
    earlier, later = build_autoencoder(), build_autoencoder()
    (tmp_path / "model_index.json").write_text("{}")
    earlier.half().save_pretrained(tmp_path / "vae")
    before = later.decoder.conv_in.weight.clone()
    start_from(None, {"vae": later})
    start_from(tmp_path, {"controlnet-canny": later})
    assert torch.equal(later.decoder.conv_in.weight, before)
    start_from(tmp_path, {"vae": later})
    for name, value in later.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, earlier.state_dict()[name].float()), name
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        start_from(tmp_path / "vae", {"vae": later})


def test_workers_average_their_gradients(tmp_path: Path) -> None:
    workers.run(2, tmp_path / "meeting", partial(share_a_gradient, tmp_path))
    left = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    for part in left:
        torch.testing.assert_close(part["gradient"], torch.tensor([[5.5, 11.0, 16.5]]))
        assert part["slowest"] == 1.0
    assert [part["first"] for part in left] == [True, False]
    assert workers.count() == 1 and workers.rank() == 0
