"""The rows of the ruler: what each asks of the engine for a held-out scene. A new control is a new entry in `ROWS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

import bridle
from held_out import Case
from placed import boxes_map, fractions, named, phrases
from world import ByteImage

INJECT_END = 0.6
"""Injected maps act in the first steps, which decide the layout."""


@dataclass(frozen=True)
class Settings:
    """Of every sampled row."""

    steps: int = 30
    guidance: float = 5.0


RequestOf = Callable[[Case, Settings], bridle.Request]


def plain_request(case: Case, settings: Settings, **changes: object) -> bridle.Request:
    """The caption alone, with the scene's seed."""
    fields: dict[str, object] = {
        "prompt": case.caption.text,
        "seed": case.seed,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
    }
    return bridle.Request(**{**fields, **changes})  # type: ignore[arg-type]


def controlnet_request(name: str) -> RequestOf:
    """The caption and the scene's control image for a ControlNet of the model."""
    return lambda case, settings: plain_request(
        case, settings, controls=[bridle.ControlNet(name, Image.fromarray(case.hints[name]))]
    )


def adapter_request(name: str) -> RequestOf:
    """The caption and the scene's control image for a T2I-Adapter of the model."""
    return lambda case, settings: plain_request(
        case, settings, controls=[bridle.T2IAdapter(name, Image.fromarray(case.hints[name]))]
    )


def region_request(mode: str) -> RequestOf:
    """The background as the prompt, and a region of its own for every object at its true box.

    A prompt that names the objects too would draw them outside of their regions as well.
    """

    def request(case: Case, settings: Settings) -> bridle.Request:
        places = phrases(case).values()
        regions = [bridle.Region(named(kind), fractions(box)) for kind, boxes in places for box in boxes]
        return plain_request(
            case,
            settings,
            prompt=f"a picture on a {case.scene.background} background",
            regions=regions,
            region_mode=mode,
            bootstrapping_steps=settings.steps // 3,
        )

    return request


def inject_request(mode: str, strength: float) -> RequestOf:
    """The caption, and for the words of every kind of object a map of the boxes where they are."""

    def request(case: Case, settings: Settings) -> bridle.Request:
        maps = [
            bridle.InjectMap(phrase, boxes_map(boxes), mode=mode, strength=strength, end=INJECT_END)
            for phrase, (_, boxes) in phrases(case).items()
        ]
        return plain_request(case, settings, attention=maps)

    return request


def round_trip_request(case: Case, settings: Settings) -> bridle.Request:
    """The rendered picture through the autoencoder and back, without any denoising: the best the model can do."""
    return plain_request(case, settings, image=Image.fromarray(case.picture), strength=0.0)


ROWS: Mapping[str, RequestOf] = {
    "autoencoder": round_trip_request,
    "no control": plain_request,
    "canny": controlnet_request("canny"),
    "seg": controlnet_request("seg"),
    "sketch": adapter_request("sketch"),
    "regions attention": region_request("attention"),
    "regions latent": region_request("latent"),
    "inject bias": inject_request("bias", 1.0),
    "inject mass": inject_request("mass", 0.8),
}
"""Row name -> request of a scene."""


def rendered(cases: Sequence[Case]) -> list[ByteImage]:
    """The ground truth itself: what the judge gives to a perfect picture."""
    return [case.picture for case in cases]


def shuffled(cases: Sequence[Case]) -> list[ByteImage]:
    """Every scene judged by the rendering of the next: chance."""
    return [*(case.picture for case in cases[1:]), cases[0].picture]


REFERENCES: Mapping[str, Callable[[Sequence[Case]], list[ByteImage]]] = {"rendered": rendered, "shuffled": shuffled}
"""Rows that need no model."""
