"""The model card of the pocket model: what it is, how it was made, how well it does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from captions import vocabulary
from shapes import SHAPES
from world import BACKGROUNDS, COLOURS, SIZE, TEXTURES

TEMPLATE = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# Bridle's pocket model

A latent diffusion model of simple coloured shapes, {size} pixels square, trained from scratch by `examples/pocket/train.py`
of Bridle. It is small enough to ship in a package, and since its world is exact, a program can judge its pictures.

It loads in Bridle (`bridle.load()`) and in plain diffusers:

```python
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

controlnet = ControlNetModel.from_pretrained("pocket/controlnet-canny")
pipeline = StableDiffusionControlNetPipeline.from_pretrained("pocket", controlnet=controlnet, safety_checker=None)
```

## Parts

| folder | network | million parameters |
|---|---|---|
{parts}

float16 safetensors, {megabytes:.1f} MB with everything.

## Data

Drawn by `examples/pocket/world.py`, nothing else: no photographs, no pictures of other people's, no pretrained weights. One
to four objects with soft shading and shadow, some of them outlined, small, ordinary or large:

- shapes: {shapes}
- colours: {colours}
- backgrounds: {backgrounds}
- textures: {textures}

Captions come from `examples/pocket/captions.py`: {words} words in several phrasings, with counts ("three red circles"),
relations ("left of", "right of", "above", "below"), places and backgrounds.

## Training

{training}

The text encoder and the U-Net learn together to predict the velocity (arXiv 2202.00512), with a tenth of the captions
dropped for guidance; the published weights are moving averages. The controls are trained on the frozen U-Net, with half of
the captions dropped, so that they are followed without a caption's help.

## Scores

{prompts} held-out scenes, {steps} steps, guidance {guidance:g}, {scheduler}, {dtype}; judged by
`benchmarks/control/ruler.py`, 0 to 1. "rendered" is the ground truth itself and "shuffled" another scene's: the best and
the worst that a row can be. "autoencoder" is the rendered picture encoded and decoded again.

{scores}

Layout diversity over seeds of one prompt: {seeds:.2f} (unrelated scenes: {unrelated:.2f}).

## Limits

It draws the shapes above and nothing else; other words have never been seen in training. Small details of shapes come out
soft, since 8 x 8 pixels share one latent. Which object is to be left of or above which is hardly heeded (relation): in training
the schedule's last noise level still shows the layout, so the noise decides it when sampling. Three and four objects are
harder than one and two. Other sizes than {size} x {size} work worse. The scores are the honest measure.

## Licence

Apache-2.0, as Bridle itself.
"""

HEADLINES = ("objects", "counting", "relation", "placement IoU", "edge F1", "mask IoU", "sketch F1")
NETWORKS = {
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "vae": "AutoencoderKL",
    "controlnet-canny": "ControlNetModel, Canny edges (thresholds 100 and 200)",
    "controlnet-seg": "ControlNetModel, objects in flat palette colours on black",
    "t2iadapter-sketch": "T2IAdapter, white object outlines on black",
}


def write_card(folder: Path, scores: Mapping[str, Any], logs: Sequence[Path], total: int) -> None:
    """README.md of a folder. scores: the ruler's report. logs: of the runs in order. total: bytes of the folder."""
    text = TEMPLATE.format(
        size=SIZE,
        parts="\n".join(f"| `{name}` | {what} | {_parameters(folder / name):.2f} |" for name, what in NETWORKS.items()),
        megabytes=total / 1e6,
        shapes=_listed(SHAPES),
        colours=_listed(COLOURS),
        backgrounds=_listed(BACKGROUNDS),
        textures=_listed(TEXTURES),
        words=len(vocabulary()),
        training=_training(logs),
        prompts=scores["prompts"],
        steps=scores["steps"],
        guidance=scores["guidance_scale"],
        scheduler=scores["scheduler"],
        dtype=scores["dtype"],
        scores=_table(scores["rows"]),
        seeds=scores["diversity"]["seeds of one prompt"],
        unrelated=scores["diversity"]["unrelated scenes"],
    )
    (folder / "README.md").write_text(text)


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}"


def _parameters(folder: Path) -> float:
    """Millions, from the bytes of float16 weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2e6


def _training(logs: Sequence[Path]) -> str:
    """A table of the stages of every run."""
    lines = ["| run | stage | steps | pictures at most | minutes | last loss |", "|---|---|---|---|---|---|"]
    for run, log in enumerate(logs, 1):
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        for entry in {entry["stage"]: entry for entry in entries}.values():
            steps, pictures, minutes = entry["step"], entry["pictures"], entry["seconds"] / 60
            lines.append(f"| {run} | {entry['stage']} | {steps} | {pictures} | {minutes:.1f} | {entry['loss']:.4f} |")
    return "\n".join(lines)


def _table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    lines = [f"| | {' | '.join(HEADLINES)} |", f"|---|{'---|' * len(HEADLINES)}"]
    for name, scores in rows.items():
        cells = [f"{scores[column]['mean']:.2f}" for column in HEADLINES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
