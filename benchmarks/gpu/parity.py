"""Part "parity:WHAT": the backend beside the reference, the whole way from request to picture, and what it promises.

WHAT is "controls" (tiny networks, every control alone and all in one batch), "loop" (the step loop on the device) or a family
of "gpu.models" (two steps of its full U-Net in float16). References and PyTorch's own half precision run on the device too.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import bridle
from bridle.backends.reference import ReferenceBackend
from bridle.engine import Loading
from bridle.new_model import write_new_model
from bridle.weights import load_model
from device_references import plain_arithmetic
from gpu import models
from gpu.kernels import problem
from gpu.part import Context

FREE_RUN = {"float32": 1e-3, "float16": 2e-2}
"""Largest relative distance of latents after some steps from the reference."""
LOOP_STEPS = 20
PEER_FACTOR = 1.25
"""In float16 a backend may also be as far from the reference as PyTorch's own float16, times this."""


def run(context: Context) -> Iterator[dict[str, Any]]:
    """See above."""
    if context.argument == "controls":
        yield from controls(context)
    elif context.argument == "loop":
        yield from loop(context)
    else:
        yield from full_unet(context)


def ours(context: Context) -> str:
    """The backend under test; where there is no GPU the reference stands in for it, to test this file."""
    return "cuda" if context.device == "cuda" else "reference"


def tiny_folder(context: Context) -> Path:
    """With every control, and an autoencoder that takes tiles of 32 pixels; one per process."""
    path = context.workspace / f"tiny-{context.argument}"
    write_new_model("tiny", path, seed=3, controlnet=True, t2i=True, ip_adapter="base")
    config = path / "vae/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 32}))
    return path


def exact_engine(folder: Path, device: str) -> bridle.Engine:
    """The reference with networks in float64, which `bridle.load` does not offer; the sampler's float32 adds 1e-6."""
    model = load_model(folder, dtype=torch.float64, device=torch.device(device))
    backend = ReferenceBackend(model, torch.device(device), torch.float64)
    return bridle.Engine(backend, folder, Loading(str(folder), "float64", None, None, None))


@plain_arithmetic()
def reference_results(engine: Any, requests: list[bridle.Request]) -> list[Any]:
    """Of a reference, or of PyTorch's own kernels."""
    return list(engine.sample(requests))


def dtypes(context: Context) -> list[str]:
    """What a device is checked in."""
    return list(FREE_RUN) if context.device == "cuda" else ["float32"]


def controls(context: Context) -> Iterator[dict[str, Any]]:
    """Every control in float32 and float16, and all together in one batch."""
    from control_cases import CONTROLS, asked

    folder = tiny_folder(context)
    right = exact_engine(folder, context.device)
    requests = {name: asked(changes) for name, changes in CONTROLS.items()}
    wanted = {name: reference_results(right, [request])[0] for name, request in requests.items()}
    for dtype in dtypes(context):
        engine = bridle.load(folder, backend=ours(context), device=context.device, dtype=dtype)
        torch_own = bridle.load(folder, backend="reference", device=context.device, dtype=dtype)
        for name, request in requests.items():
            yield compared(f"{name} {dtype}", engine, torch_own, [request], [wanted[name]], dtype)
        together = [request for name, request in requests.items() if name != "latent regions"]
        matching = [wanted[name] for name in requests if name != "latent regions"]
        yield compared(f"one batch {dtype}", engine, torch_own, together, matching, dtype)
        yield graphed(f"every control is a graph {dtype}", engine)


def compared(
    name: str, engine: Any, torch_own: Any, requests: list[bridle.Request], wanted: list[Any], dtype: str
) -> dict[str, Any]:
    """The largest distance of a batch from what is wanted, and that of PyTorch's own kernels."""
    found: dict[str, Any] = {"name": name}

    def check() -> None:
        found["distance"] = farthest(engine.sample(requests), wanted)
        found["torch_distance"] = farthest(reference_results(torch_own, requests), wanted)
        limit = max(FREE_RUN[dtype], PEER_FACTOR * found["torch_distance"] if dtype != "float32" else 0.0)
        assert found["distance"] <= limit, f"distance {found['distance']:.3g}, wants at most {limit:.3g}"

    return {**found, "problem": problem(check), **found}


def farthest(got: Any, wanted: list[Any]) -> float:
    """Relative distance of the worst latents, and absolute distance of the worst heat map."""
    distances = [0.0]
    for one, other in zip(got, wanted, strict=True):
        distances.append(float((one.latents.double() - other.latents).norm() / other.latents.norm()))
        distances += [float(abs(one.maps[word] - heat).max()) for word, heat in other.maps.items()]
    return max(distances)


def loop(context: Context) -> Iterator[dict[str, Any]]:
    """Many steps beside the reference, equal bits twice, no capture after the first run, no wait for the device between
    steps, bits that no neighbour moves."""
    from control_cases import CONTROLS, asked

    folder = tiny_folder(context)
    engine = bridle.load(folder, backend=ours(context), device=context.device, dtype="float32")
    request = replace(asked(CONTROLS["ControlNet"]), num_inference_steps=6, output_type="latent")
    yield from long_run(context, folder, replace(request, num_inference_steps=LOOP_STEPS))
    first = engine.sample(request)
    yield {"name": "equal bits twice", "problem": problem(lambda: same(engine.sample(request), first))}
    yield {"name": "no capture for other numbers", "problem": problem(lambda: no_capture(engine, request))}
    yield {"name": "no wait between steps", "problem": problem(lambda: no_wait(engine, request, context.device))}
    yield graphed("every program is a graph", engine)
    if context.device == "cuda":
        exact = bridle.load(folder, backend="cuda", device="cuda", dtype="float32", deterministic=True)
        yield {"name": "deterministic", "problem": problem(lambda: needle(exact, request))}


def long_run(context: Context, folder: Path, request: bridle.Request) -> Iterator[dict[str, Any]]:
    """All steps of an image on the device, without anything that corrects what they add up."""
    wanted = reference_results(exact_engine(folder, context.device), [request])
    for dtype in dtypes(context):
        engine, torch_own = (
            bridle.load(folder, backend=backend, device=context.device, dtype=dtype)
            for backend in (ours(context), "reference")
        )
        yield compared(f"{LOOP_STEPS} steps {dtype}", engine, torch_own, [request], wanted, dtype)


def graphed(name: str, engine: Any) -> dict[str, Any]:
    """A record that is a problem where a capture was refused."""
    count = getattr(engine.backend, "uncaptured", 0)
    return {"name": name, "problem": f"{count} could not be captured, see the log" if count else None}


def same(one: Any, other: Any) -> None:
    """Raises AssertionError."""
    assert torch.equal(one.latents, other.latents), "latents differ"


def no_capture(engine: Any, request: bridle.Request) -> None:
    """Raises AssertionError. Another prompt, strength, guidance, schedule, number of steps, and window of a control."""
    control = request.controls[0]
    captured_nothing(
        engine,
        request,
        {"prompt": "a blue star"},
        {"guidance_scale": 2.0},
        {"controls": [replace(control, scale=0.3)]},
        {"num_inference_steps": 9},
        {"scheduler": "euler"},
    )
    # Steps without the control have a program of their own: the first window captures it.
    engine.sample(replace(request, controls=[replace(control, start=0.5)]))
    windows = ({"start": 0.25, "end": 0.75}, {"end": 0.4}, {"start": 0.7})
    captured_nothing(engine, request, *({"controls": [replace(control, **window)]} for window in windows))


def captured_nothing(engine: Any, request: bridle.Request, *changes: dict[str, Any]) -> None:
    """Raises AssertionError."""
    before = getattr(engine.backend, "captures", 0)
    for change in changes:
        engine.sample(replace(request, **change))
        assert getattr(engine.backend, "captures", 0) == before, f"a graph was captured again: {change}"


def no_wait(engine: Any, request: bridle.Request, device: str) -> None:
    """Raises RuntimeError where the host waits for the device while it denoises, but for the end of a batch."""
    if device != "cuda":
        return
    from bridle import sampler

    whole = sampler._step

    def watched(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return whole(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    sampler._step = watched
    try:
        engine.sample(request)
    finally:
        sampler._step = whole


def needle(engine: Any, request: bridle.Request) -> None:
    """Raises AssertionError where neighbours change a bit of a request's latents."""
    alone = engine.sample(request)
    others = [replace(request, seed=100 + index, guidance_scale=3.0, controls=()) for index in range(4)]
    for place in (0, 2, 4):
        same(engine.sample([*others[:place], request, *others[place:]])[place], alone)


def full_unet(context: Context) -> Iterator[dict[str, Any]]:
    """Two steps of a full U-Net in float16, beside the reference on the same device in float32."""
    if not models.ready(context.workspace, context.argument):
        yield {"name": context.argument, "problem": "its weights were not written in time"}
        return
    folder = models.folder(context.workspace, context.argument)
    side = {"sd15": 512, "sdxl": 1024}[context.argument] if context.size == "full" else 64
    request = bridle.Request(
        "a red circle", seed=1, width=side, height=side, num_inference_steps=2, output_type="latent",
        controls=[bridle.ControlNet("controlnet", bridle_picture(side))],
    )  # fmt: skip
    results = {}
    for name, backend, dtype in (
        ("reference", "reference", "float32"),
        ("torch", "reference", "float16" if context.device == "cuda" else "float32"),
        ("ours", ours(context), "float16" if context.device == "cuda" else "float32"),
    ):
        engine = bridle.load(folder, backend=backend, device=context.device, dtype=dtype)
        results[name] = engine.sample([request])[0] if name == "ours" else reference_results(engine, [request])[0]
        del engine
    distance, own = (farthest([results[name]], [results["reference"]]) for name in ("ours", "torch"))
    limit = max(FREE_RUN["float16"], PEER_FACTOR * own)
    wrong = None if distance <= limit else f"distance {distance:.3g}, wants at most {limit:.3g}"
    yield {"name": context.argument, "distance": distance, "torch_distance": own, "problem": wrong}


def bridle_picture(side: int) -> Any:
    """A control image."""
    from cpu.workspace import picture

    return picture(0, side)
