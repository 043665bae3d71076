"""The pictures of docs/maps-and-regions.md, made by the model in the package: `python benchmarks/control/map_gallery.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

import bridle
import bridle_eval  # noqa: F401  (puts the world's folder on the path)
from bridle.heat_maps import overlay
from contact_sheet import grid
from gallery import SEEDS, parse_arguments, request, save
from sampling import sample_pictures
from world import SIZE, ByteImage

PROMPT = "a red circle and a blue star on a white background"
WORDS = ("red circle", "blue star")
EDITS = ("a green circle and a blue star on a white background", "a red heart and a blue star on a white background")
LEFT, RIGHT = (0.05, 0.25, 0.45, 0.75), (0.55, 0.25, 0.95, 0.75)
TOP, BOTTOM = (0.25, 0.05, 0.75, 0.45), (0.25, 0.55, 0.75, 0.95)
HALVES = (((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)), ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)))
FACTORS = (0.0, 1.0, 2.0)
REGIONS = (("a purple heart", "a yellow ring"), ("a pink star", "a green triangle"))
PANORAMA = "four yellow stars on a blue background"


def heat_map_lines(engine: bridle.Engine) -> list[list[ByteImage]]:
    """The picture and the map of each word over it."""
    lines = []
    for seed in SEEDS:
        result = engine.sample(request(PROMPT, seed, attention=[bridle.CaptureMaps(list(WORDS))]))
        assert isinstance(result, bridle.Result) and isinstance(result.images, list)
        image = result.images[0]
        lines.append([np.asarray(image), *(np.asarray(overlay(image, result.maps[word][0])) for word in WORDS)])
    return lines


def reweight_lines(engine: bridle.Engine) -> list[list[ByteImage]]:
    """Growing factors on one of the objects."""
    requests = [
        request(PROMPT, seed, attention=[bridle.Reweight(WORDS[1], factor)]) for seed in SEEDS for factor in FACTORS
    ]
    return _lines(sample_pictures(engine, requests, len(requests), "reweight"), len(FACTORS))


def edit_lines(engine: bridle.Engine) -> list[list[ByteImage]]:
    """Source, edits, and what the edited prompts give alone."""
    lines = []
    for seed in SEEDS:
        edits = [request(prompt, seed, attention=[bridle.PromptEdit(PROMPT)]) for prompt in EDITS]
        alone = [request(prompt, seed) for prompt in EDITS]
        lines.append(sample_pictures(engine, [request(PROMPT, seed), *edits, *alone], 8, "prompt edit"))
    return lines


def inject_lines(engine: bridle.Engine) -> list[list[ByteImage]]:
    """Boxes for both objects, and what is drawn without a map and in both modes."""
    lines = []
    for first, second in ((LEFT, RIGHT), (BOTTOM, TOP)):
        changes: list[dict[str, object]] = [{}]
        for mode, strength in (("bias", 1.0), ("mass", 0.8)):
            maps = [
                bridle.InjectMap(word, box=box, mode=mode, strength=strength, end=0.6)
                for word, box in zip(WORDS, (first, second), strict=True)
            ]
            changes.append({"attention": maps})
        requests = [request(PROMPT, SEEDS[0], **change) for change in changes]
        lines.append([painted((first, second)), *sample_pictures(engine, requests, 8, "inject map")])
    return lines


def region_lines(engine: bridle.Engine) -> list[list[ByteImage]]:
    """Boxes, and the prompts of both regions without and with them, in both modes."""
    lines = []
    for (first, second), boxes in zip(REGIONS, HALVES, strict=True):
        prompt = f"{first} and {second} on a white background"
        texts = [f"{text} on a white background" for text in (first, second)]
        regions = [bridle.Region(text, box) for text, box in zip(texts, boxes, strict=True)]
        requests = [
            request(prompt, SEEDS[0]),
            request(prompt, SEEDS[0], regions=regions),
            request(prompt, SEEDS[0], regions=regions, region_mode="latent", bootstrapping_steps=8),
        ]
        lines.append([painted(boxes), *sample_pictures(engine, requests, 8, "regions")])
    return lines


def panorama(engine: bridle.Engine) -> Image.Image:
    """Three windows wide, seamless at its ends: shown twice side by side."""
    views = bridle.Views(SIZE, SIZE // 4, circular=True)
    result = engine.sample(request(PANORAMA, SEEDS[0], width=3 * SIZE, height=SIZE, views=views))
    assert isinstance(result, bridle.Result) and isinstance(result.images, list)
    return Image.fromarray(np.concatenate([np.asarray(result.images[0])] * 2, axis=1))


def painted(boxes: Sequence[tuple[float, float, float, float]]) -> ByteImage:
    """The boxes on black, the first one lighter."""
    canvas = np.zeros((SIZE, SIZE, 3), np.uint8)
    for (left, top, right, bottom), shade in zip(boxes, (230, 130), strict=True):
        canvas[round(top * SIZE) : round(bottom * SIZE), round(left * SIZE) : round(right * SIZE)] = shade
    return canvas


def _lines(pictures: list[ByteImage], width: int) -> list[list[ByteImage]]:
    return [pictures[start : start + width] for start in range(0, len(pictures), width)]


def main() -> None:
    """All pictures."""
    arguments = parse_arguments(__doc__)
    engine = bridle.load(arguments.model)
    both = [PROMPT] * len(SEEDS)
    save(grid(heat_map_lines(engine), ["image", *WORDS], both), arguments.out / "heat-maps.png")
    titles = [f"{WORDS[1]} x {factor:g}" for factor in FACTORS]
    save(grid(reweight_lines(engine), titles, both), arguments.out / "reweight.png")
    titles = ["source", "green circle", "red heart", "prompt alone", "prompt alone"]
    save(grid(edit_lines(engine), titles, both), arguments.out / "prompt-edit.png")
    titles = ["boxes", "no map", "bias", "mass"]
    save(grid(inject_lines(engine), titles, both), arguments.out / "inject-map.png")
    captions = [f"{first}, {second}" for first, second in REGIONS]
    titles = ["boxes", "no regions", "attention", "latent"]
    save(grid(region_lines(engine), titles, captions), arguments.out / "regions.png")
    save(panorama(engine), arguments.out / "panorama.png")


if __name__ == "__main__":
    main()
