"""diffusers attention processors that build whole maps and change them: the naive method of every map control."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor

PROMPT = "a red circle left of a blue square"


class MapProcessor:
    """Plain attention of one layer, with the map [R, H, N, L] in memory. `step` counts the calls: one per step.

    Rows are [unconditional, conditional], twice over where a source image is denoised beside its edit.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cross = ".attn2." in name
        self.step = 0

    def scores(self, scores: Tensor) -> Tensor:
        """What the softmax sees."""
        return scores

    def maps(self, maps: Tensor) -> Tensor:
        """What multiplies the values."""
        return maps

    def add(self, attn: Attention, q: Tensor, out: Tensor) -> Tensor:
        """The layer's output [R, H, N, d] before its projection, from that of the text."""
        return out

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            heads(attn, attn.to_q(hidden_states)),
            heads(attn, attn.to_k(context)),
            heads(attn, attn.to_v(context)),
        )
        maps = self.maps(self.scores(attn.scale * q @ k.transpose(-1, -2)).softmax(-1))
        out = self.add(attn, q, maps @ v)
        self.step += 1
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def heads(attn: Attention, x: Tensor) -> Tensor:
    """[R, H, N, d] of [R, N, H * d]."""
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def level_of(name: str, levels: int) -> int:
    """The resolution level of an attention layer, 0 = the latent's."""
    parts = name.split(".")
    if parts[0] == "mid_block":
        return levels - 1
    return int(parts[1]) if parts[0] == "down_blocks" else levels - 1 - int(parts[1])


def with_processors(pipeline: DiffusionPipeline, make: Callable[[str], MapProcessor]) -> list[MapProcessor]:
    """Gives every attention of the U-Net a processor, and returns those of the cross-attentions."""
    processors = {name: make(name) for name in pipeline.unet.attn_processors}
    pipeline.unet.set_attn_processor(dict(processors))  # which empties the one it gets
    return [processor for processor in processors.values() if processor.is_cross]


def word_spans(pipeline: DiffusionPipeline, prompt: str) -> list[tuple[str, list[int]]]:
    """Words between spaces with their columns, by the lengths of the tokenizer's pieces."""
    tokenizer: Any = pipeline.tokenizer
    spans, place = [], 1
    for word in prompt.split():
        count = len(tokenizer(word, add_special_tokens=False).input_ids)
        spans.append((word, list(range(place, place + count))))
        place += count
    assert place == 1 + len(tokenizer(prompt, add_special_tokens=False).input_ids)
    return spans


def word_columns(pipeline: DiffusionPipeline, prompt: str, *words: str) -> list[int]:
    """Columns of every occurrence of the words."""
    return [column for word, columns in word_spans(pipeline, prompt) if word in words for column in columns]


def cell_means(pixels: Tensor, side: int) -> Tensor:
    """[ceil(H / side) * ceil(W / side)]: the mean over the pixels of each cell that are in the image."""
    rows = [pixels[top : top + side] for top in range(0, pixels.shape[0], side)]
    means = [row[:, left : left + side].mean() for row in rows for left in range(0, row.shape[1], side)]
    return torch.stack(means)
