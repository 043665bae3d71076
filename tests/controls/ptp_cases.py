"""Prompts and tokenizers of the prompt-to-prompt vectors (tests/goldens/prompt-to-prompt)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from bridle.prompts import PromptTokens, tokenize_prompt

GOLDENS = Path(__file__).parents[1] / "goldens" / "prompt-to-prompt"


def config(case: str) -> dict[str, Any]:
    """The description of a case."""
    found: dict[str, Any] = json.loads((GOLDENS / case / "config.json").read_text())
    return found


def tensors(case: str, part: str) -> dict[str, Tensor]:
    """ "inputs", "outputs" or "weights" of a case."""
    return load_file(GOLDENS / case / f"{part}.safetensors")


def clip_tokenizer(case: str) -> CLIPTokenizer:
    """The case's tokenizer in CLIP's format."""
    folder = GOLDENS / case / "tokenizer"
    vocab = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    backend: Any = CLIPTokenizer  # its annotation leaves out pairs
    tokenizer: CLIPTokenizer = backend(vocab=vocab, merges=merges, model_max_length=77)
    return tokenizer


@dataclass(frozen=True)
class WordTokenizer:
    """One token per word between spaces; 0 starts a prompt, 1 ends and pads it."""

    vocab: Sequence[str]
    pad_token_id: int = 1

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self._id(word) for word in text.split()] for text in texts]}

    def _id(self, word: str) -> int:
        return self.vocab.index(word) if word in self.vocab else len(self.vocab)

    @property
    def bos_token(self) -> str:
        return self.vocab[0]

    @property
    def eos_token(self) -> str:
        return self.vocab[1]

    @property
    def bos_token_id(self) -> int:
        return 0

    @property
    def eos_token_id(self) -> int:
        return 1

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.vocab[token] + "</w>" for token in ids]

    def convert_tokens_to_ids(self, token: str) -> int:
        return -1


def encode(tokenizer: Any, prompt: str) -> PromptTokens:
    """A prompt without weighting syntax."""
    return tokenize_prompt(tokenizer, prompt, "plain")


def allowed(case: str, name: str) -> float:
    """The largest difference from output `name` that counts as equal."""
    return float(config(case)["accept"][name])


def assert_close(case: str, name: str, found: Tensor | np.ndarray, wanted: Tensor) -> None:
    """`found` agrees with `wanted`, output `name` of the case or a part of it."""
    values = np.asarray(found, dtype=np.float64)
    assert values.shape == tuple(wanted.shape), name
    assert np.abs(values - wanted.double().numpy()).max() <= allowed(case, name), name
