"""The prompts of a request as rows: of the whole image, of latent regions, and of every view."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.controls import regions, views
from bridle.lowering import RowPlan
from bridle.request_checks import Prepared
from bridle.solvers import SolverTable
from bridle.text_conditioning import TextConditioning, encode_negative, encode_positive, encode_prompt


@dataclass(frozen=True, slots=True)
class TextRows:
    """rows: of one image, before images and controls. source: of the image that it edits, or None."""

    rows: list[RowPlan]
    source: list[RowPlan] | None


def lower_text(backend: ReferenceBackend, prepared: Prepared) -> TextRows:
    """Encodes every prompt once."""
    request, chunks = prepared.request, len(prepared.tokens.lengths)
    positive = encode_positive(backend, request, chunks)
    rows = _guided(backend, prepared, positive)
    source = None
    if prepared.edit is not None:
        field, prompt = "PromptEdit.source_prompt", prepared.edit.source_prompt
        original = _row(backend, prepared, encode_prompt(backend, request, field, prompt, chunks), conditional=True)
        # The unconditional rows have the same prompt, but the lists of a row are its own.
        source = [row.alone() for row in rows[:-1]] + [replace(original, coefficient=rows[-1].coefficient)]
    if request.regions and request.region_mode == "latent":
        encode = region_encoder(backend, prepared, rows)
        rows = regions.latent_rows(backend, request.regions, prepared.guidance_scale, rows, encode, prepared.size)
    found = [window for window in prepared.windows if window is not None]
    if found:
        rows = views.split(rows, found, prepared.latent_size)
    return TextRows(rows, source)


def region_encoder(backend: ReferenceBackend, prepared: Prepared, rows: Sequence[RowPlan]) -> regions.EncodeRow:
    """Makes the plain rows of regions; a negative prompt that a region does not have is the request's.

    rows: of the request's own prompts; what they have encoded is not encoded again.
    """
    request = prepared.request

    @cache
    def negative() -> RowPlan:
        own = next((row for row in rows if not row.conditional), None)
        if own is not None:
            return own.alone()
        positive = TextConditioning(rows[0].context, rows[0].pooled)
        return _row(backend, prepared, encode_negative(backend, request, positive), conditional=False)

    def encode(index: int, conditional: bool) -> RowPlan:
        name = "prompt" if conditional else "negative_prompt"
        prompt = getattr(request.regions[index], name)
        if prompt is None:
            return negative()
        text = encode_prompt(backend, request, f"regions[{index}].{name}", prompt)
        return _row(backend, prepared, text, conditional)

    return encode


def timesteps(table: SolverTable) -> Tensor:
    """[S] float32: what the network is told."""
    return torch.tensor(table.timesteps, dtype=torch.float32)


def _guided(backend: ReferenceBackend, prepared: Prepared, positive: TextConditioning) -> list[RowPlan]:
    """[unconditional, conditional], or [conditional] without guidance."""
    row = _row(backend, prepared, positive, conditional=True)
    if prepared.guidance_scale <= 1.0:
        return [row]
    negative = encode_negative(backend, prepared.request, positive)
    other = _row(backend, prepared, negative, conditional=False)
    scale = prepared.guidance_scale
    return [replace(other, coefficient=1.0 - scale), replace(row, coefficient=scale)]


def _row(backend: ReferenceBackend, prepared: Prepared, text: TextConditioning, conditional: bool) -> RowPlan:
    unet = backend.model.unet
    context = text.context.to(backend.device, backend.dtype)
    pooled = time_ids = added = None
    if text.pooled is not None:
        pooled = text.pooled.to(backend.device, backend.dtype)
        time_ids = _time_ids(prepared, conditional).to(backend.device)
        added = backend.added_embedding(unet, pooled, time_ids)
    steps = timesteps(prepared.table)
    time = backend.time_table(unet, steps, added) if len(steps) else context.new_zeros(0)
    return RowPlan(conditional, 1.0, context, pooled, time_ids, backend.cross_kv(unet, context), time)


def _time_ids(prepared: Prepared, conditional: bool) -> Tensor:
    """[1, 6]: original size, crop corner, target size, each (height, width) or (top, left)."""
    request = prepared.request
    original, crop = request.original_size or prepared.size, request.crops_coords_top_left
    target = request.target_size or prepared.size
    if not conditional:
        original = request.negative_original_size or original
        crop = request.negative_crops_coords_top_left or crop
        target = request.negative_target_size or target
    return torch.tensor([[*original, *crop, *target]], dtype=torch.float32)


def row_index(rows: Sequence[RowPlan]) -> int:
    """The conditional row of the request's own prompt."""
    return next(i for i, row in enumerate(rows) if row.conditional and row.region is None)
