"""The pocket model's own byte-pair vocabulary in CLIPTokenizer's format: bytes, and one token for each caption word."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from transformers import CLIPTokenizer

from captions import vocabulary

MAX_TOKENS = 77


def build_tokenizer() -> CLIPTokenizer:
    """Every byte alone and at a word's end, then the merges that make one token of every caption word, then markers."""
    symbols = _byte_symbols()
    merges = learn_merges(vocabulary())
    names = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    make: Any = CLIPTokenizer
    tokenizer: CLIPTokenizer = make(
        vocab={token: index for index, token in enumerate(names)},
        merges=merges,
        pad_token="<|endoftext|>",
        model_max_length=MAX_TOKENS,
    )
    return tokenizer


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (arXiv 1508.07909): join the most frequent pair of neighbours until every word is one token."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in split):
        counts = Counter(pair for parts in split for pair in pairwise(parts))
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        split = [_joined(parts, best) for parts in split]
    return merges


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _byte_symbols() -> list[str]:
    """Byte-level BPE's stand-in for each byte (CLIP, simple_tokenizer.py): itself if printable, else U+0100 and on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    free = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(free)) for byte in range(256)]
