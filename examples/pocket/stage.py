"""One training stage: a time budget, a loss, averaged weights, checkpoints, a log and sample sheets."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import recorded
import workers

WARMUP_STEPS = 150
LOG_EVERY = 50
"""Steps; a GPU runs ahead of the program between two of them."""


@dataclass
class Stage:
    """What `train` needs to know.

    loss: takes a generator and the elapsed share of the budget, 0..1, and returns a scalar.
    repeats: whether the loss is one fixed computation that heeds neither argument and draws on the module's device with
        PyTorch's own generator. A GPU then records it once and replays it.
    batch: pictures a step at most, of this process.
    show: writes a sample sheet to the given path and exports; called with the averaged weights in place.
    """

    name: str
    minutes: float
    module: nn.Module
    loss: Callable[[np.random.Generator, float], Tensor]
    show: Callable[[Path], None]
    learning_rate: float
    batch: int
    repeats: bool = False
    ema_decay: float = 0.999
    show_every: float = 300.0


class Average:
    """An exponential moving average of a module's floating-point state."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.moving = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}

    def update(self, step: int) -> None:
        """Follow the module; early steps count more, so that the start is forgotten soon."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([self.state[name] for name in self.moving], list(self.moving.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the averaged weights, in evaluation mode; its own come back afterwards."""
        own = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.state)
        self.module.eval()
        try:
            yield
        finally:
            self.module.load_state_dict(own)
            self.module.train()


class _Progress:
    """All that changes during a stage, with its checkpoint on disk."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.path = folder / f"{stage.name}.pt"
        self.module = stage.module
        self.optimizer = torch.optim.AdamW(
            stage.module.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.average = Average(stage.module, stage.ema_decay)
        self.step = 0
        self.elapsed = 0.0
        self.finished = False
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(saved["module"])
        self.average.state = {
            name: value.to(self.average.state[name].device) for name, value in saved["average"].items()
        }
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.elapsed, self.finished = saved["step"], saved["elapsed"], saved["finished"]

    def save(self) -> None:
        """Write beside, then rename, so that an interrupted write harms nothing."""
        saved = {
            "module": self.module.state_dict(),
            "average": self.average.state,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "finished": self.finished,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(saved, partial)
        partial.rename(self.path)


def train(stage: Stage, out: Path, seed: int) -> None:
    """Run a stage, or what is left of it, and leave the averaged weights in its module.

    Where several processes run it (`workers.py`), each has its own part of the batch; the first one writes.
    """
    (out / "state").mkdir(parents=True, exist_ok=True)
    (out / "sheets").mkdir(exist_ok=True)
    progress = _Progress(stage, out / "state")
    workers.barrier()
    if not progress.finished:
        _optimise(stage, progress, out, seed)
        progress.finished = True
        if workers.rank() == 0:
            progress.save()
            _show(stage, progress, out)
    workers.barrier()
    stage.module.load_state_dict(progress.average.state)
    stage.module.eval().requires_grad_(False)


def _optimise(stage: Stage, progress: _Progress, out: Path, seed: int) -> None:
    # A resumed run must not see the samples of its start again, so the step takes part in the seed.
    rng = np.random.default_rng((seed, progress.step, workers.rank()))
    torch.manual_seed((seed * 1_000_003 + progress.step) * 64 + workers.rank())
    budget = stage.minutes * 60
    if progress.elapsed >= budget:
        return
    stage.module.train()
    first = workers.rank() == 0
    shown, bar = progress.elapsed, tqdm(total=round(budget), initial=round(progress.elapsed), desc=stage.name, unit="s")
    bar.disable = not first
    bar.mininterval = 10
    running = torch.zeros(())
    batch = stage.batch * workers.count()
    loss_and_gradients = _loss_and_gradients(stage, rng)
    while progress.elapsed < budget:
        started = time.monotonic()
        value = _step(stage, progress, loss_and_gradients, progress.elapsed / budget)
        running = running.to(value.device).lerp(value, 1 / min(progress.step, 100))
        if progress.step % LOG_EVERY == 0:
            mean = float(running)
            if first:
                place = {"stage": stage.name, "step": progress.step, "pictures": progress.step * batch}
                _log(out, {**place, "seconds": progress.elapsed, "loss": mean})
            bar.set_postfix(step=progress.step, loss=f"{mean:.4f}", refresh=False)
        if progress.elapsed - shown > stage.show_every:
            shown = progress.elapsed
            if first:
                progress.save()
                _show(stage, progress, out)
        spent = workers.agreed(time.monotonic() - started)
        progress.elapsed += spent
        bar.update(spent)
    bar.close()


def _loss_and_gradients(stage: Stage, rng: np.random.Generator) -> Callable[[float], Tensor]:
    """A function of the elapsed share that returns a step's loss and leaves its gradients in the module."""

    def compute(share: float) -> Tensor:
        stage.module.zero_grad(set_to_none=True)
        loss = stage.loss(rng, share)
        torch.autograd.backward(loss)
        return loss.detach()

    on_gpu = next(stage.module.parameters()).is_cuda
    return recorded.record(compute) if stage.repeats and on_gpu else compute


def _step(stage: Stage, progress: _Progress, loss_and_gradients: Callable[[float], Tensor], share: float) -> Tensor:
    """One optimiser step; returns the loss, a scalar on the module's device."""
    warm = min(1.0, (progress.step + 1) / WARMUP_STEPS)
    rate = stage.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))
    for group in progress.optimizer.param_groups:
        group["lr"] = rate
    loss = loss_and_gradients(share)
    workers.average_gradients(stage.module)
    nn.utils.clip_grad_norm_(stage.module.parameters(), 1.0)
    progress.optimizer.step()
    progress.step += 1
    progress.average.update(progress.step)
    return loss


def _show(stage: Stage, progress: _Progress, out: Path) -> None:
    with progress.average.applied(), torch.no_grad():
        stage.show(out / "sheets" / f"{stage.name}-{progress.step:06d}.png")


def _log(out: Path, entry: dict[str, object]) -> None:
    with (out / "log.jsonl").open("a") as sink:
        sink.write(json.dumps(entry) + "\n")
