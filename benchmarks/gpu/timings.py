"""Part "timings:GROUP": ours and diffusers eager, run in turns in one process. "timings:FAMILY:compiled": ours and compiled.

Compiling takes longer than measuring, so it is done ahead by parts of its own, whose results the cache on disk keeps. Even to
read that cache takes longer than all else of a row: a part of its own does it, so that no other row waits for it.
"""

import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import bridle
from cpu import ours as requests_of
from cpu.measure import interleaved
from cpu.workspace import picture
from gpu import models, peers
from gpu.clock import seconds
from gpu.kernels import problem
from gpu.part import Context
from gpu.rows import ROWS, Row, side

ROUNDS = (2, 5)
"""At least and at most."""
SOURCE = "a red square left of a blue star"
SECONDS_OF_A_ROW = 10.0
"""A row is not begun with less; its rounds should take no more."""
Run = Callable[[], float]
"""Runs once: seconds."""


@dataclass
class Loaded:
    """What rows have in common: engines by (family, whether they are deterministic), and the peers' networks."""

    shared: peers.Shared
    engines: dict[tuple[str, bool], bridle.Engine] = field(default_factory=dict)


@torch.no_grad()
def run(context: Context) -> Iterator[dict[str, Any]]:
    """One record per row of the group that is the argument, or of a family's rows that are compiled."""
    loaded = Loaded(peers.Shared(context.device))
    group, _, compiled = context.argument.partition(":")
    for name, row in ROWS.items():
        if (row.family if compiled else row.group) != group or (compiled and not is_compiled(context, name)):
            continue
        if not models.ready(context.workspace, row.family):
            yield {"name": name, "title": row.title, "problem": "its weights were not written in time"}
        elif context.left < SECONDS_OF_A_ROW:
            yield {"name": name, "title": row.title, "left_out": "no time was left", "problem": None}
        else:
            yield measured(context, name, row, loaded, bool(compiled))


@torch.no_grad()
def compile_ahead(context: Context) -> Iterator[dict[str, Any]]:
    """Compiles the rows of the family that is the argument until it is ended. A peer that cannot be is no mistake of ours."""
    shared = peers.Shared(context.device)
    for name, row in ROWS.items():
        if row.deterministic or row.family != context.argument:
            continue
        found: dict[str, Any] = {}

        def build(row: Row = row, found: dict[str, Any] = found) -> None:
            run = peers.build(row, models.folder(context.workspace, row.family), context.size, True, shared)
            found["seconds"] = round(seconds(run, context.device), 1)

        wrong = problem(build)
        marker(context, name).parent.mkdir(exist_ok=True)
        marker(context, name).write_text(wrong or "")
        yield {"name": name, **found, "left_out": wrong, "problem": None}
        _forget()


def marker(context: Context, name: str) -> Any:
    """A file that says that a row has been compiled, or why it cannot be."""
    return context.workspace / "compiled" / name


def measured(context: Context, name: str, row: Row, loaded: Loaded, compiled: bool = False) -> dict[str, Any]:
    """Milliseconds of a step (or of the decode) by system, what each had to be given, and ratios of the medians."""
    systems: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    once, warm = 0.0, None
    for system, make in makers(context, row, loaded, compiled).items():
        warm = Warm(make, context.device)
        entry = systems[system] = {"problem": problem(warm)}
        entry["mib"], entry["peak_mib"] = warm.mib()
        if warm.run is not None and not entry["problem"]:
            runs[system] = warm.run
            once += warm.seconds
    rounds = min(max(int(SECONDS_OF_A_ROW / max(once, 1e-9)), ROUNDS[0]), ROUNDS[1])
    for system, values in interleaved(runs, rounds, name).items():
        per_step = [1000.0 * value / max(1, row.steps) for value in values]
        systems[system] |= {"ms": round(statistics.median(per_step), 4), "fastest": round(min(per_step), 4),
                            "slowest": round(max(per_step), 4)}  # fmt: skip
    if not row.deterministic and "compiled" not in systems and not is_compiled(context, name):
        systems["compiled"] = {"left_out": not_compiled(context, name), "problem": None}
    runs.clear()
    warm = None  # what it built is given back too
    _forget()
    wrong = "; ".join(f"{s}: {entry['problem']}" for s, entry in systems.items() if entry["problem"]) or None
    return {"name": name, "title": row.title, "systems": systems, "ratios": ratios(systems), "problem": wrong}


class Warm:
    """Builds a system and runs it twice: the second run is what the others will be like."""

    def __init__(self, make: Callable[[], Run], device: str) -> None:
        self._make, self._device = make, device
        self.run: Run | None = None
        self.seconds = 0.0
        self._before = _reserved(device)

    def __call__(self) -> None:
        """Raises whatever the system does."""
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run = self._make()
        run()
        self.seconds = run()
        self.run = run

    def mib(self) -> tuple[float, float]:
        """What it has taken of the device for this row, and the most that it took, beside what earlier rows have left it."""
        peak = torch.cuda.max_memory_reserved() if self._device == "cuda" else 0
        return tuple(round((value - self._before) / 2**20, 1) for value in (_reserved(self._device), peak))


def is_compiled(context: Context, name: str) -> bool:
    """Whether a peer of a row can be read from the cache."""
    return marker(context, name).exists() and not marker(context, name).read_text()


def not_compiled(context: Context, name: str) -> str:
    """Why."""
    path = marker(context, name)
    return path.read_text() if path.exists() else "it was not compiled in time"


def ratios(systems: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times faster ours is than each peer."""
    own = systems.get("ours", {}).get("ms")
    if own is None:
        return {}
    return {s: round(entry["ms"] / own, 3) for s, entry in systems.items() if s != "ours" and "ms" in entry}


def makers(context: Context, row: Row, loaded: Loaded, compiled: bool) -> dict[str, Callable[[], Run]]:
    """By system, what builds it."""
    folder = models.folder(context.workspace, row.family)

    def peer() -> Run:
        run = peers.build(row, folder, context.size, compiled, loaded.shared)
        return lambda: seconds(run, context.device)

    found: dict[str, Callable[[], Run]] = {"ours": lambda: our_run(context, row, loaded.engines)}
    if not row.deterministic:
        found["compiled" if compiled else "eager"] = peer
    return found


def engine_of(context: Context, row: Row, engines: dict[tuple[str, bool], bridle.Engine]) -> bridle.Engine:
    """Loaded once. Without a GPU the reference stands in."""
    key = (row.family, row.deterministic)
    if key not in engines:
        cuda = context.device == "cuda"
        engines[key] = bridle.load(
            models.folder(context.workspace, row.family),
            backend="cuda" if cuda else "reference",
            device=context.device,
            dtype="float16" if cuda else "float32",
            deterministic=row.deterministic,
        )
    return engines[key]


def our_run(context: Context, row: Row, engines: dict[tuple[str, bool], bridle.Engine]) -> Run:
    """The requests of a row; seconds of denoising, or of decoding."""
    engine, extent = engine_of(context, row, engines), side(row, context.size)
    backend = engine.backend
    noise = torch.randn(row.requests, 4, extent, extent, generator=torch.Generator().manual_seed(1))
    if not row.steps:
        latents = (noise * 0.18215).to(backend.device, backend.dtype)
        return lambda: seconds(lambda: backend.decode_image(latents, tiling=False), context.device)
    asked = [our_request(row, extent, own) for own in noise]

    def run() -> float:
        results = engine.sample(asked, progress=False)
        assert isinstance(results, list)
        return results[0].timings["denoise"]

    return run


def our_request(row: Row, extent: int, noise: torch.Tensor) -> bridle.Request:
    """One of a row's equal requests."""
    request = requests_of.request(row, extent, noise)
    if row.edit:
        return replace(request, attention=[bridle.PromptEdit(SOURCE)])
    if row.image_prompt:
        return replace(request, controls=[bridle.ImagePrompt("ip-adapter", picture(0, 8 * extent))])
    return request


def _reserved(device: str) -> int:
    """Bytes that PyTorch holds on the device."""
    return int(torch.cuda.memory_reserved()) if device == "cuda" else 0


def _forget() -> None:
    """Gives back what the last row's peers had."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
