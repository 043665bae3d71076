"""Where the tokenizer of a single-file checkpoint comes from: it carries none itself."""

import copy
import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridle.errors import ModelLoadError

CLIP_REPOSITORY = "openai/clip-vit-large-patch14"
_MERGES = 49152 - 256 - 2


def read_tokenizer(path: Path, name: str) -> Any:
    """The transformers CLIPTokenizer of a folder. Raises ModelLoadError."""
    from transformers import CLIPTokenizer

    if not any((path / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise ModelLoadError(name, "has no vocab.json or tokenizer.json; pass tokenizer=FOLDER")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(path), local_files_only=True)
        tokenizer("a")  # a vocabulary without its markers is noticed only now
        return tokenizer
    except Exception as problem:  # third-party parser of files from outside
        raise ModelLoadError(name, f"cannot be read as a CLIP tokenizer ({type(problem).__name__})") from problem


def check_vocabularies(tokenizers: Sequence[Any], sizes: Sequence[int]) -> None:
    """Raises ModelLoadError for a token without a row in its encoder's embedding. sizes: rows per encoder."""
    for index, (tokenizer, size) in enumerate(zip(tokenizers, sizes, strict=True)):
        token, top = max(tokenizer.get_vocab().items(), key=lambda item: int(item[1]))
        if top >= size:
            name = "tokenizer" if index == 0 else f"tokenizer_{index + 1}"
            raise ModelLoadError(name, f"token {ascii(token)[:60]} has id {top}, the text encoder knows {size}")


def single_file_tokenizers(given: str | Path | None, family: str) -> tuple[Any, ...]:
    """One tokenizer per text encoder. OpenCLIP encoders (SD 2.x, the second of SDXL) pad with "!"."""
    clip = read_tokenizer(Path(given), Path(given).name) if given is not None else _cached() or _from_open_clip()
    if clip is None:
        raise ModelLoadError(
            "tokenizer",
            f"a single file carries none: pass tokenizer=FOLDER, or have {CLIP_REPOSITORY} in the Hugging Face cache, "
            "or install open_clip_torch",
        )
    open_clip = copy.deepcopy(clip)
    open_clip.pad_token = "!"
    return {"sd15": (clip,), "sd21": (open_clip,), "sdxl": (clip, open_clip)}[family]


def _cached() -> Any | None:
    from huggingface_hub import try_to_load_from_cache

    vocabulary = try_to_load_from_cache(CLIP_REPOSITORY, "vocab.json")
    return read_tokenizer(Path(vocabulary).parent, CLIP_REPOSITORY) if isinstance(vocabulary, str) else None


def _from_open_clip() -> Any | None:
    """CLIP's vocabulary from its list of merges, as open_clip ships it: byte symbols, their word ends, merges, markers."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    if not file.is_file():
        return None
    from transformers import CLIPTokenizer

    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : _MERGES + 1]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    make: Any = CLIPTokenizer
    return make(vocab=vocab, merges=merges, model_max_length=77)


def byte_symbols() -> list[str]:
    """Byte-level BPE's stand-in for each byte, in CLIP's vocabulary order (simple_tokenizer.py of openai/CLIP).

    A printable byte stands for itself and comes first; the others are shown by the characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(hidden))]
