"""Part "timings": ours, diffusers eager and diffusers compiled, run in turns in one process.

Compiling takes longer than measuring, so it is done ahead by parts of its own, whose results the cache on disk keeps; a row
that is not compiled by then is measured without that peer, and says so.
"""

import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
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

ROUNDS = 5
SOURCE = "a red square left of a blue star"
SECONDS_OF_A_ROW = 15.0
"""A row is not begun with less."""
Run = Callable[[], float]
"""Runs once: seconds."""


@torch.no_grad()
def run(context: Context) -> Iterator[dict[str, Any]]:
    """One record per row."""
    engines: dict[str, bridle.Engine] = {}
    for name, row in ROWS.items():
        if not models.ready(context.workspace, row.family):
            yield {"name": name, "title": row.title, "problem": "its weights were not written in time"}
        elif context.left < SECONDS_OF_A_ROW:
            yield {"name": name, "title": row.title, "left_out": "no time was left", "problem": None}
        else:
            yield measured(context, name, row, engines)


@torch.no_grad()
def compile_ahead(context: Context) -> Iterator[dict[str, Any]]:
    """Compiles the rows of the family that is the argument until it is ended."""
    for name, row in ROWS.items():
        if not row.compiled or row.family != context.argument:
            continue
        found: dict[str, Any] = {}

        def build(row: Row = row, found: dict[str, Any] = found) -> None:
            run = peers.build(row, models.folder(context.workspace, row.family), context.device, context.size, True)
            found["seconds"] = round(seconds(run, context.device), 1)

        wrong = problem(build)
        if wrong is None:
            marker(context, name).parent.mkdir(exist_ok=True)
            marker(context, name).touch()
        yield {"name": name, **found, "problem": wrong}
        _forget()


def marker(context: Context, name: str) -> Any:
    """A file that says that a row has been compiled."""
    return context.workspace / "compiled" / name


def measured(context: Context, name: str, row: Row, engines: dict[str, bridle.Engine]) -> dict[str, Any]:
    """Milliseconds of a step (or of the decode) by system, what each had to be given, and ratios of the medians."""
    systems: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for system, make in makers(context, name, row, engines).items():
        before = _reserved(context.device)
        entry = systems[system] = {"problem": problem(lambda s=system, m=make: runs.__setitem__(s, _warm(m, context)))}
        if entry["problem"]:
            runs.pop(system, None)
        entry["mib"] = round((_reserved(context.device) - before) / 2**20, 1)
    measured_runs = interleaved(runs, ROUNDS, name)
    for system, values in measured_runs.items():
        per_step = [1000.0 * value / max(1, row.steps) for value in values]
        systems[system] |= {"ms": round(statistics.median(per_step), 4), "fastest": round(min(per_step), 4),
                            "slowest": round(max(per_step), 4)}  # fmt: skip
    if row.compiled and "compiled" not in systems:
        systems["compiled"] = {"left_out": "it was not compiled in time", "problem": None}
    runs.clear()
    _forget()
    wrong = "; ".join(f"{s}: {entry['problem']}" for s, entry in systems.items() if entry["problem"]) or None
    return {"name": name, "title": row.title, "systems": systems, "ratios": ratios(systems), "problem": wrong}


def ratios(systems: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times faster ours is than each peer."""
    own = systems.get("ours", {}).get("ms")
    if own is None:
        return {}
    return {s: round(entry["ms"] / own, 3) for s, entry in systems.items() if s != "ours" and "ms" in entry}


def makers(context: Context, name: str, row: Row, engines: dict[str, bridle.Engine]) -> dict[str, Callable[[], Run]]:
    """By system, what builds it."""
    folder = models.folder(context.workspace, row.family)

    def peer(compiled: bool) -> Run:
        run = peers.build(row, folder, context.device, context.size, compiled)
        return lambda: seconds(run, context.device)

    found: dict[str, Callable[[], Run]] = {
        "ours": lambda: our_run(context, row, engines),
        "eager": lambda: peer(False),
    }
    if row.compiled and marker(context, name).exists():
        found["compiled"] = lambda: peer(True)
    return found


def our_run(context: Context, row: Row, engines: dict[str, bridle.Engine]) -> Run:
    """The requests of a row; seconds of denoising, or of decoding."""
    if row.family not in engines:
        backend = "cuda" if context.device == "cuda" else "reference"
        dtype = "float16" if context.device == "cuda" else "float32"
        folder = models.folder(context.workspace, row.family)
        engines[row.family] = bridle.load(folder, backend=backend, device=context.device, dtype=dtype)
    engine, extent = engines[row.family], side(row, context.size)
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


def _warm(make: Callable[[], Run], context: Context) -> Run:
    """Built, and run twice."""
    run = make()
    run()
    run()
    return run


def _reserved(device: str) -> int:
    """Bytes that PyTorch holds on the device."""
    return int(torch.cuda.memory_reserved()) if device == "cuda" else 0


def _forget() -> None:
    """Gives back what the last row's peers had."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
