"""The pictures of the documentation, made by the model in the package: `python benchmarks/control/gallery.py`.

Every exhibit is a scene, whose control image is shown to the model, and a prompt that says what the control does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import bridle
import bridle_eval  # noqa: F401  (puts the world's folder on the path)
from contact_sheet import grid
from controls import HINTS
from rows import Settings
from sampling import sample_pictures
from world import SIZE, ByteImage, Scene, Thing, render

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SEEDS = (0, 1)
STRENGTHS = (0.4, 0.6, 0.8)
SETTINGS = Settings()


@dataclass(frozen=True)
class Exhibit:
    """What a control is given: the scene that its image comes from, and the prompt."""

    things: tuple[Thing, ...]
    prompt: str

    @property
    def picture(self) -> ByteImage:
        """The scene's rendering on white."""
        return render(self.scene)

    @property
    def scene(self) -> Scene:
        """On a plain white background."""
        return Scene(self.things, "white", "plain", 0)

    def hint(self, control: str) -> ByteImage:
        """Control image."""
        return HINTS[control](self.scene, self.picture)


STAR, CIRCLE = Thing("star", "blue", "", 90.0, 44.0, 24.0), Thing("circle", "red", "", 38.0, 82.0, 22.0)
HEART, RING = Thing("heart", "pink", "", 40.0, 40.0, 24.0), Thing("ring", "cyan", "", 88.0, 84.0, 24.0)
EXHIBITS: Mapping[str, tuple[Exhibit, ...]] = {
    "canny": (
        Exhibit((STAR, CIRCLE), "a yellow star and a purple circle on a blue background"),
        Exhibit((HEART, RING), "a red heart and a green ring on a striped gray background"),
    ),
    "seg": (
        Exhibit((STAR, CIRCLE), "a blue star and a red circle on a green background"),
        Exhibit((HEART, RING), "a pink heart and a cyan ring on a dotted yellow background"),
    ),
    "sketch": (
        Exhibit((STAR, CIRCLE), "a pink star and an orange circle on a white background"),
        Exhibit((HEART, RING), "a purple heart and a yellow ring on a black background"),
    ),
}
PAIR = Exhibit(
    (Thing("circle", "red", "", 36.0, 64.0, 22.0), Thing("star", "blue", "", 92.0, 62.0, 24.0)),
    "a red circle left of a blue star on a white background",
)
REPAINTED = "a red circle left of a green heart on a white background"
RESTYLED = "a yellow circle left of a purple star on a gray background"


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The command line of a gallery."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="model folder; default: the model in the package")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures")
    return parser.parse_args()


def request(prompt: str, seed: int, **changes: object) -> bridle.Request:
    """A request with the gallery's settings."""
    fields = {"num_inference_steps": SETTINGS.steps, "guidance_scale": SETTINGS.guidance, **changes}
    return bridle.Request(prompt, seed=seed, **fields)  # type: ignore[arg-type]


def controlled(control: str, exhibit: Exhibit, seed: int) -> bridle.Request:
    """The exhibit's prompt under a control of the model."""
    kind = bridle.T2IAdapter if control == "sketch" else bridle.ControlNet
    return request(exhibit.prompt, seed, controls=[kind(control, Image.fromarray(exhibit.hint(control)))])


def control_lines(engine: bridle.Engine, control: str, exhibits: Sequence[Exhibit]) -> list[list[ByteImage]]:
    """For every exhibit: the control image, two pictures under it, and those of the same prompt and seeds without it."""
    requests = [controlled(control, exhibit, seed) for exhibit in exhibits for seed in SEEDS]
    requests += [request(exhibit.prompt, seed) for exhibit in exhibits for seed in SEEDS]
    shown = sample_pictures(engine, requests, len(requests), control)
    half, each = len(shown) // 2, len(SEEDS)
    return [
        [exhibit.hint(control), *shown[each * index :][:each], *shown[half + each * index :][:each]]
        for index, exhibit in enumerate(exhibits)
    ]


def image_to_image_line(engine: bridle.Engine) -> list[ByteImage]:
    """A drawing, and what becomes of it at growing strength."""
    start = Image.fromarray(PAIR.picture)
    requests = [request(RESTYLED, 0, image=start, strength=strength) for strength in STRENGTHS]
    return [PAIR.picture, *sample_pictures(engine, requests, len(requests), "image-to-image")]


def inpainting_line(engine: bridle.Engine) -> list[ByteImage]:
    """A drawing, the mask over its right half, and two repaintings."""
    mask = np.zeros((SIZE, SIZE, 3), np.uint8)
    mask[24:104, 60:124] = 255
    drawing, painted = Image.fromarray(PAIR.picture), Image.fromarray(mask[:, :, 0])
    requests = [request(REPAINTED, seed, image=drawing, mask_image=painted) for seed in SEEDS]
    return [PAIR.picture, mask, *sample_pictures(engine, requests, len(requests), "inpainting")]


def save(sheet: Image.Image, path: Path) -> None:
    """A PNG with a palette of 256 colours: a third of the size, and hardly to be told apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KiB")


def main() -> None:
    """All pictures, and the sheet of the README from the first exhibit of each control."""
    arguments = parse_arguments(__doc__)
    engine = bridle.load(arguments.model)
    save(Image.fromarray(EXHIBITS["canny"][0].hint("canny")), arguments.out / "edges.png")
    titles = ["control image", *(["with control"] * len(SEEDS)), *(["prompt alone"] * len(SEEDS))]
    overview: list[list[ByteImage]] = []
    for control, exhibits in EXHIBITS.items():
        lines = control_lines(engine, control, exhibits)
        overview.append(lines[0])
        save(grid(lines, titles, [exhibit.prompt for exhibit in exhibits]), arguments.out / f"{control}.png")
    captions = [f"{control}: {exhibits[0].prompt}" for control, exhibits in EXHIBITS.items()]
    save(grid(overview, titles, captions), arguments.out / "controls.png")
    steps = ["image", *(f"strength {strength}" for strength in STRENGTHS)]
    save(grid([image_to_image_line(engine)], steps, [RESTYLED]), arguments.out / "image-to-image.png")
    save(
        grid([inpainting_line(engine)], ["image", "mask", "result", "result"], [REPAINTED]),
        arguments.out / "inpainting.png",
    )


if __name__ == "__main__":
    main()
