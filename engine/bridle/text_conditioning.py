"""Prompts of a request -> context tensors, by the rules of each model family."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.prompts import PromptTokens, apply_weights, tokenize_prompt, with_chunks
from bridle.request import Request


@dataclass(frozen=True, slots=True)
class TextConditioning:
    """context: [1, L, D], L a multiple of 77. pooled: [1, P] on SDXL, else None."""

    context: Tensor
    pooled: Tensor | None


def check_prompts(backend: ReferenceBackend, request: Request) -> None:
    """Raises RequestError and LimitError for every prompt whose syntax or length cannot be served; encodes nothing."""
    for prompts in (_positive(request), _negative(request), *_region_prompts(request)):
        for _ in _tokens(backend, prompts, request):
            pass


def prompt_tokens(backend: ReferenceBackend, request: Request, field: str, prompt: str) -> PromptTokens:
    """Tokens of a prompt as the first text encoder reads it; columns of its context are counted by them."""
    return tokenize_prompt(backend.model.tokenizers[0], prompt, request.prompt_syntax, field)


def encode_positive(backend: ReferenceBackend, request: Request, chunks: int = 1) -> TextConditioning:
    """The conditional row's context, of at least `chunks` chunks."""
    return _encode(backend, _positive(request), request, chunks)


def encode_prompt(
    backend: ReferenceBackend, request: Request, field: str, prompt: str, chunks: int = 1
) -> TextConditioning:
    """The context of another prompt of the request, of at least `chunks` chunks."""
    return _encode(backend, ((field, prompt), (field, prompt)), request, chunks)


def encode_negative(backend: ReferenceBackend, request: Request, positive: TextConditioning) -> TextConditioning:
    """The unconditional row's context: zeros where the model wants them for a missing negative prompt (SDXL)."""
    if request.negative_prompt is None and backend.model.force_zeros_for_empty_prompt:
        pooled = None if positive.pooled is None else torch.zeros_like(positive.pooled)
        return TextConditioning(torch.zeros_like(positive.context), pooled)
    return _encode(backend, _negative(request), request)


Prompts = tuple[tuple[str, str], ...]
"""(field, text) for the first and the second text encoder."""


def _positive(request: Request) -> Prompts:
    second = ("prompt", request.prompt) if request.prompt_2 is None else ("prompt_2", request.prompt_2)
    return ("prompt", request.prompt), second


def _negative(request: Request) -> Prompts:
    first = "negative_prompt", request.negative_prompt or ""
    return first, first if request.negative_prompt_2 is None else ("negative_prompt_2", request.negative_prompt_2)


def _region_prompts(request: Request) -> Iterator[Prompts]:
    for index, region in enumerate(request.regions):
        for name in ("prompt", "negative_prompt"):
            entry = (f"regions[{index}].{name}", getattr(region, name) or "")
            yield entry, entry


def _tokens(backend: ReferenceBackend, prompts: Prompts, request: Request) -> Iterator[PromptTokens]:
    """One per text encoder; an SDXL model with one encoder has the second one."""
    used = prompts[:1] if backend.model.architecture != "sdxl" else prompts[-len(backend.model.text_encoders) :]
    for tokenizer, (field, text) in zip(backend.model.tokenizers, used, strict=True):
        yield tokenize_prompt(tokenizer, text, request.prompt_syntax, field)


def _encode(backend: ReferenceBackend, prompts: Prompts, request: Request, chunks: int = 1) -> TextConditioning:
    """SD 1.x and 2.x: last hidden layer after the final norm. SDXL: both encoders' penultimate layers, side by side."""
    xl = backend.model.architecture == "sdxl"
    skip = request.clip_skip + (1 if xl else 0)
    hidden, pooled = [], None
    for index, own in enumerate(_tokens(backend, prompts, request)):
        tokens = with_chunks(backend.model.tokenizers[index], own, max(chunks, len(own.lengths)))
        output = backend.encode_text(index, torch.tensor(tokens.ids), skip, final_norm=not xl)
        weighted = apply_weights(output.hidden, torch.tensor(tokens.weights).to(output.hidden))
        hidden.append(weighted.reshape(1, -1, weighted.shape[-1]))
        if output.pooled is not None:
            pooled = output.pooled[:1]
    return TextConditioning(_side_by_side(hidden), pooled if xl else None)


def _side_by_side(hidden: list[Tensor]) -> Tensor:
    """Concatenation over features; the shorter context is padded with zeros (prompt and prompt_2 of other lengths)."""
    longest = max(tensor.shape[1] for tensor in hidden)
    padded = [torch.nn.functional.pad(tensor, (0, 0, 0, longest - tensor.shape[1])) for tensor in hidden]
    return torch.cat(padded, dim=2)
