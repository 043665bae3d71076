"""A CLIP tokenizer with byte symbols and a few words."""

from typing import Any

from transformers import CLIPTokenizer

_WORDS = ("red", "cat", "a", "dog", "sitting", "circle")


def tiny_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """256 byte symbols, each also as a word's end, merges for a few words, start and end markers."""
    symbols = _byte_symbols()
    vocabulary = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    backend: Any = CLIPTokenizer  # its annotation leaves out pairs
    tokenizer: CLIPTokenizer = backend(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=77)
    return tokenizer


def _byte_symbols() -> list[str]:
    """The printable stand-in of each byte in byte-level BPE: itself, or the next free character from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    free = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(free)) for byte in range(256)]
