"""The images of a request as tracks: starting latents, known regions, backgrounds, and what is remembered."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.controls import bootstrapping, capture_maps, regions
from bridle.controls.source_blend import source_blend
from bridle.image_conditioning import EncodedImages, Start, encode_images, start
from bridle.lowering import RowPlan
from bridle.map_controls import CaptureMaps, LocalBlend, PromptEdit
from bridle.noise import NoiseSource, noise_source
from bridle.prompts import word_columns
from bridle.request_checks import Prepared
from bridle.text_rows import TextRows, row_index
from bridle.track import MapRecord, Track


def lower_images(backend: ReferenceBackend, prepared: Prepared, text: TextRows, index: int) -> list[Track]:
    """The tracks of one request, one per image; that of the source of an edit stands before it."""
    images = encode_images(backend, prepared.request, prepared.size)
    tracks = []
    for place in range(prepared.request.num_images):
        track = _track(backend, prepared, text.rows, images, index, place)
        if text.source is not None and prepared.edit is not None:
            tracks.append(_linked_source(backend, prepared, prepared.edit, track, text.source))
        tracks.append(track)
    return tracks


def _track(
    backend: ReferenceBackend,
    prepared: Prepared,
    rows: Sequence[RowPlan],
    images: EncodedImages,
    index: int,
    place: int,
) -> Track:
    request, table = prepared.request, prepared.table
    noise = noise_source(request.noise, request.seeds[place])
    injected = request.latents[place : place + 1] if isinstance(request.latents, Tensor) else None
    backgrounds = _backgrounds(backend, prepared, noise)
    begin = start(backend, request, images, table, injected, prepared.latent_size, noise)
    if backgrounds is not None:
        rows = _bootstrapped(backend, prepared, rows, backgrounds, begin, noise)
    return Track(
        request_index=index,
        image_index=place,
        rows=tuple(_with_channels(row, begin.extra_channels) for row in rows),
        table=table,
        latents=begin.latents[0],
        noise=noise,
        known=begin.known,
        records=_records(backend, prepared, rows),
    )


def _with_channels(row: RowPlan, extra: Tensor | None) -> RowPlan:
    if extra is None:
        return row
    return replace(row, extra_channels=extra if row.window is None else row.window.cut(extra))


def _backgrounds(backend: ReferenceBackend, prepared: Prepared, noise: NoiseSource) -> bootstrapping.Backgrounds | None:
    request, window = prepared.request, prepared.windows[0]
    steps = min(request.bootstrapping_steps, len(prepared.table))
    if not request.regions or request.region_mode != "latent" or not steps or window is None:
        return None
    channels = backend.model.unet.config.out_channels
    return bootstrapping.draw_backgrounds(request.bootstrapping_steps, (window.height, window.width), channels, noise)


def _bootstrapped(
    backend: ReferenceBackend,
    prepared: Prepared,
    rows: Sequence[RowPlan],
    backgrounds: bootstrapping.Backgrounds,
    begin: Start,
    noise: NoiseSource,
) -> list[RowPlan]:
    request, count = prepared.request, len(backgrounds.colours)
    steps = min(count, len(prepared.table))
    picks = bootstrapping.draw_picks(steps, count, len(prepared.windows), len(request.regions), noise)
    used = sorted({int(pick) for pick in picks.flatten()})
    latents = bootstrapping.encode_backgrounds(backend, backgrounds, used, request.vae_tiling)
    masks = regions.latent_masks(backend, request.regions, prepared.size)
    return bootstrapping.bootstrap_rows(rows, masks, prepared.windows, picks, latents, begin.noise[0])


def _records(backend: ReferenceBackend, prepared: Prepared, rows: Sequence[RowPlan]) -> tuple[MapRecord, ...]:
    """One per `CaptureMaps`, in their order."""
    config, steps = backend.model.unet.config, len(prepared.table)
    found = []
    for control in prepared.request.attention:
        if isinstance(control, CaptureMaps):
            columns = prepared.columns_of(control.words)
            record = capture_maps.record(config, control, columns, row_index(rows), prepared.latent_size, steps)
            found.append(record)
    return tuple(found)


def _linked_source(
    backend: ReferenceBackend, prepared: Prepared, edit: PromptEdit, track: Track, rows: Sequence[RowPlan]
) -> Track:
    """The track that `track` reads: the same start and the same noise."""
    extra = track.rows[0].extra_channels
    source = Track(
        request_index=track.request_index,
        image_index=track.image_index,
        rows=tuple(_with_channels(row, extra) for row in rows),
        table=track.table,
        latents=track.latents.clone(),
        noise=track.noise.again(),
        known=track.known,
        shown=False,
    )
    track.source = source
    if isinstance(edit.local_blend, LocalBlend):
        _add_blend(backend, prepared, edit.local_blend, track, source)
    return source


def _add_blend(backend: ReferenceBackend, prepared: Prepared, control: LocalBlend, track: Track, source: Track) -> None:
    assert prepared.source_tokens is not None and control.source_words is not None
    tokenizer = backend.model.tokenizers[0]
    theirs = word_columns(tokenizer, prepared.source_tokens, list(control.source_words), "LocalBlend.source_words")
    ours = {word: prepared.columns[word] for word in control.words}
    blend = source_blend(
        backend.model.unet.config,
        control,
        (row_index(source.rows), _all(theirs)),
        (row_index(track.rows), _all(ours)),
        prepared.latent_size,
        len(prepared.table),
    )
    track.blend = blend
    track.records = (*track.records, blend.own)
    source.records = (blend.source,)


def _all(columns: dict[str, tuple[int, ...]]) -> list[int]:
    return sorted({column for own in columns.values() for column in own})
