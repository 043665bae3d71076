"""Prompts of a request -> context tensors, by the rules of each model family."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.prompts import apply_weights, tokenize_prompt
from bridle.request import Request


@dataclass(frozen=True, slots=True)
class TextConditioning:
    """context: [1, L, D], L a multiple of 77. pooled: [1, P] on SDXL, else None."""

    context: Tensor
    pooled: Tensor | None


def encode_positive(backend: ReferenceBackend, request: Request) -> TextConditioning:
    """The conditional row's context."""
    second = request.prompt if request.prompt_2 is None else request.prompt_2
    return _encode(backend, (request.prompt, second), request)


def encode_negative(backend: ReferenceBackend, request: Request, positive: TextConditioning) -> TextConditioning:
    """The unconditional row's context: zeros where the model wants them for a missing negative prompt (SDXL)."""
    if request.negative_prompt is None and backend.model.force_zeros_for_empty_prompt:
        pooled = None if positive.pooled is None else torch.zeros_like(positive.pooled)
        return TextConditioning(torch.zeros_like(positive.context), pooled)
    first = request.negative_prompt or ""
    second = first if request.negative_prompt_2 is None else request.negative_prompt_2
    return _encode(backend, (first, second), request)


def _encode(backend: ReferenceBackend, prompts: tuple[str, str], request: Request) -> TextConditioning:
    """SD 1.x and 2.x: last hidden layer after the final norm. SDXL: both encoders' penultimate layers, side by side."""
    xl = backend.model.architecture == "sdxl"
    encoders = backend.model.text_encoders
    texts = (prompts[2 - len(encoders)],) if len(encoders) == 1 else prompts
    if not xl:
        texts = prompts[:1]
    skip = request.clip_skip + (1 if xl else 0)
    hidden, pooled = [], None
    for index, text in enumerate(texts):
        tokens = tokenize_prompt(backend.model.tokenizers[index], text, syntax=request.prompt_syntax)
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
