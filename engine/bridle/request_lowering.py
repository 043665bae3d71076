"""The controls of a request, each lowered to primitives of its rows."""

from collections.abc import Sequence

from bridle.backends.reference import ReferenceBackend
from bridle.controls import controlnet, image_prompt, inject_map, prompt_edit, regions, reweight, t2i_adapter
from bridle.image_prompt import ImagePrompt
from bridle.lowering import RowPlan
from bridle.map_controls import InjectMap, PromptEdit, Reweight
from bridle.networks.configs import AdapterConfig, ControlNetConfig
from bridle.networks.layout import level_sizes
from bridle.request import ControlNet
from bridle.request_checks import Prepared
from bridle.text_rows import TextRows, region_encoder, timesteps
from bridle.weights import Component, IPAdapter


def lower_controls(backend: ReferenceBackend, prepared: Prepared, text: TextRows) -> None:
    """Adds every control to the rows, in the order of the request."""
    steps = len(prepared.table)
    if not steps:
        return
    every = [*text.rows, *(text.source or ())]
    _lower_trained(backend, prepared, every)
    request = prepared.request
    if request.regions and request.region_mode == "attention":
        encode = region_encoder(backend, prepared, text.rows)
        regions.lower_attention(backend, request.regions, request.base_ratio, every, encode, steps, prepared.size)
    _lower_maps(backend, prepared, [row for row in text.rows if row.conditional and row.region is None])


def _lower_trained(backend: ReferenceBackend, prepared: Prepared, rows: Sequence[RowPlan]) -> None:
    steps, size = timesteps(prepared.table), prepared.size
    for control, weights in zip(prepared.request.controls, prepared.weights, strict=True):
        if isinstance(control, ImagePrompt):
            assert isinstance(weights, IPAdapter)
            image_prompt.lower(backend, control, weights, rows, len(steps), size)
            continue
        assert isinstance(weights, Component)
        if isinstance(control, ControlNet):
            assert isinstance(weights.config, ControlNetConfig)
            controlnet.lower(backend, control, weights, rows, steps, size)
        else:
            assert isinstance(weights.config, AdapterConfig)
            t2i_adapter.lower(backend, control, weights, rows, len(steps), size)


def _lower_maps(backend: ReferenceBackend, prepared: Prepared, rows: Sequence[RowPlan]) -> None:
    """rows: the conditional rows of the request's own prompt."""
    steps = len(prepared.table)
    for control in prepared.request.attention:
        if isinstance(control, Reweight):
            reweight.lower(control, prepared.columns_of(control.words), rows, steps)
        elif isinstance(control, InjectMap):
            inject_map.lower(backend, control, prepared.columns_of(control.words), rows, steps, prepared.size)
        elif isinstance(control, PromptEdit):
            _lower_edit(backend, prepared, control, rows)
    prompt_edit.carry_injected_maps(rows)


def _lower_edit(backend: ReferenceBackend, prepared: Prepared, edit: PromptEdit, rows: Sequence[RowPlan]) -> None:
    assert prepared.source_tokens is not None
    sizes = level_sizes(prepared.latent_size, backend.model.unet.config.levels)
    prompt_edit.lower(
        backend.model.tokenizers[0],
        edit,
        prepared.source_tokens,
        prepared.tokens,
        rows,
        len(prepared.table),
        [height * width for height, width in sizes],
    )
