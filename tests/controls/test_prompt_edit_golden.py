"""A prompt edit with its local blend through the sampler, against the official loop (public-pipeline-replace-blend)."""

from dataclasses import dataclass, field

import pytest
import torch
from golden_loops import BACKENDS, GoldenLoop, Watched, run
from ptp_cases import clip_tokenizer, encode
from torch import Tensor

from bridle.controls import prompt_edit
from bridle.controls.local_blend import blend_ratio
from bridle.controls.source_blend import SourceBlend, source_blend
from bridle.map_controls import LocalBlend, PromptEdit
from bridle.networks.layout import level_sizes
from bridle.prompts import word_columns
from bridle.track import Track

CASE = "public-pipeline-replace-blend"
CONDITIONAL = 1
NEAR = 1e-3
"""The official masks are safe where the ratio is further than this from the threshold."""


@dataclass
class Recorded:
    """A blend that remembers, per step, the latents it was given and the ratios of both prompts' words."""

    blend: SourceBlend
    before: list[Tensor] = field(default_factory=list)
    ratios: list[Tensor] = field(default_factory=list)

    def __call__(self, step: int, latents: Tensor, source: Tensor) -> Tensor:
        self.before.append(torch.stack([source, latents]))
        records = (self.blend.source, self.blend.own)
        maps = [next(iter(record.sums.values())).reshape(-1, *self.blend.size) for record in records]
        self.ratios.append(torch.stack([blend_ratio(m, (latents.shape[1], latents.shape[2])) for m in maps]))
        return self.blend(step, latents, source)


@pytest.fixture(scope="module", params=BACKENDS)
def golden(request: pytest.FixtureRequest) -> GoldenLoop:
    return GoldenLoop.read(f"prompt-to-prompt/{CASE}", request.param)


def tracks(golden: GoldenLoop) -> tuple[Track, Track, Recorded]:
    """The source's and the edit's, and what happens between them."""
    config, tokenizer = golden.backend.model.unet.config, clip_tokenizer(CASE)
    arguments = golden.fields["controller_arguments"]
    source_words, words = arguments["local_blend_words"]
    local = LocalBlend(words, source_words, threshold=golden.fields["local_blend"]["threshold"])
    edit = PromptEdit(
        golden.fields["prompts"][0],
        cross=arguments["n_cross_replace"],
        self=arguments["n_self_replace"],
        local_blend=local,
    )
    tokens = [encode(tokenizer, prompt) for prompt in golden.fields["prompts"]]
    embeddings = [golden.inputs[name] for name in ("negative_prompt_embeds", "prompt_embeds")]
    rows = [[golden.row(embeddings[half][place], bool(half)) for half in (0, 1)] for place in (0, 1)]
    height, width = golden.inputs["latents"].shape[-2:]
    sizes = level_sizes((height, width), config.levels)
    positions = [h * w for h, w in sizes]
    prompt_edit.lower(tokenizer, edit, tokens[0], tokens[1], [rows[1][CONDITIONAL]], golden.fields["steps"], positions)
    columns = [
        list(word_columns(tokenizer, own, group)[group[0]])
        for own, group in zip(tokens, (source_words, words), strict=True)
    ]
    blend = source_blend(
        config,
        local,
        (CONDITIONAL, columns[0]),
        (CONDITIONAL, columns[1]),
        (height, width),
        golden.fields["steps"],
    )
    source, own = (golden.track(rows[place], golden.inputs["latents"][place], place) for place in (0, 1))
    recorded = Recorded(blend)
    own.source, own.blend, own.records, source.records = source, recorded, (blend.own,), (blend.source,)
    return source, own, recorded


def test_every_step(golden: GoldenLoop) -> None:
    source, own, recorded = tracks(golden)
    watched = Watched(golden.backend)
    latents = run(watched, [source, own])
    coefficients = torch.tensor([row.coefficient for row in source.rows])
    for step in range(golden.fields["steps"]):
        eps = torch.einsum("g,pg...->p...", coefficients, watched.outputs[step].unflatten(0, (2, 2)))
        golden.close(eps, f"step{step}.eps")
        golden.close(recorded.before[step], f"step{step}.latents_before_blend")
        golden.close(torch.stack([latents[0][step], latents[1][step]]), f"step{step}.latents")


def test_masks(golden: GoldenLoop) -> None:
    source, own, recorded = tracks(golden)
    latents = run(golden.backend, [source, own])
    threshold = golden.fields["local_blend"]["threshold"]
    for step, ratios in enumerate(recorded.ratios):
        golden.close(ratios[:, None], f"step{step}.blend_ratio")
        sure = (golden.outputs[f"step{step}.blend_ratio"] - threshold).abs() > NEAR
        official = golden.outputs[f"step{step}.blend_mask_u8"].bool()
        assert torch.equal((ratios > threshold)[:, None][sure], official[sure])
        changed = (latents[1][step] != latents[0][step]).any(0)
        assert torch.equal(changed[sure.all(0)[0]], official.any(0)[0][sure.all(0)[0]])


@pytest.mark.parametrize("left_out", ["mix", "self_source"])
def test_every_part_of_the_edit_counts(golden: GoldenLoop, left_out: str) -> None:
    source, own, _ = tracks(golden)
    setattr(own.rows[CONDITIONAL], left_out, None)
    latents = run(golden.backend, [source, own])
    assert float((latents[1][-1] - golden.outputs["step4.latents"][1]).abs().max()) > 0.1
    golden.close(latents[0][-1], "step4.latents", torch.tensor(0))
