"""ImagePrompt (IP-Adapter, arXiv 2308.06721): a second cross-attention on image tokens beside the text's.

The images of one adapter share one softmax where there are no masks; with masks each has its own, weighted by its mask,
bicubic as in diffusers. The unconditional row sees the tokens of an empty image, not none. ControlNets see text only.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.clip_images import clip_pixels
from bridle.controls.site_maps import BLOCKS
from bridle.errors import RequestError
from bridle.image_prompt import ImagePrompt
from bridle.lowering import RowPlan, SegmentPlan, StepScales, Window, by_window, window_scales
from bridle.masks import bicubic_levels, check_covers, read_mask
from bridle.networks.configs import UNetConfig
from bridle.networks.unet import attention_sites
from bridle.request import as_picture
from bridle.rows import KV
from bridle.weights import IPAdapter


def check(backend: ReferenceBackend, control: ImagePrompt, size: tuple[int, int]) -> None:
    """Raises RequestError for scales of blocks that the model does not have and masks that vanish at this size."""
    site_scales(backend.model.unet.config, control.scale)
    for i, mask in enumerate(_masks(control, size) or ()):
        check_covers(f"ImagePrompt.mask[{i}]", bicubic_levels(mask, backend.model.vae.config.scale, 1)[0])


def lower(
    backend: ReferenceBackend,
    control: ImagePrompt,
    adapter: IPAdapter,
    rows: Sequence[RowPlan],
    steps: int,
    size: tuple[int, int],
) -> None:
    """Adds the adapter's segments to every row. size: (height, width) in pixels."""
    config = backend.model.unet.config
    scales, active = site_scales(config, control.scale), window_scales(steps, control.start, control.end, 1.0)
    if not any(scales) or not active.any():
        return
    pixels = clip_pixels([as_picture(p) for p in control.image], adapter.image_encoder.config.image_size)  # type: ignore[attr-defined]
    tokens = backend.encode_image_prompt(adapter, pixels)
    masks = _masks(control, size)
    for part in _segments(backend, adapter, tokens.conditional, tokens.unconditional, masks):
        _add(backend, rows, part, scales, active)


def site_scales(config: UNetConfig, scale: object) -> tuple[float, ...]:
    """The scale at every cross-attention. Raises RequestError for blocks and layers that do not exist.

    A dictionary is diffusers' form: {"down": s, "mid": s, "up": {"block_0": s, "block_1": [s per layer]}}; the rest is 0. A
    list in the place of {"block_0": ..} is the same for every block.
    """
    sites = attention_sites(config)
    if not isinstance(scale, Mapping):
        assert isinstance(scale, float)
        return (scale,) * len(sites)
    layers = list(dict.fromkeys(site.name.split(".transformer_blocks")[0] for site in sites))
    found = dict.fromkeys(layers, 0.0)
    for name, value in scale.items():
        mine = [layer for layer in layers if name in BLOCKS and layer.startswith(BLOCKS[name])]
        if not mine:
            raise RequestError("ImagePrompt.scale", name, "a dictionary of 'down', 'mid' and 'up'")
        _set_block(found, mine, f"ImagePrompt.scale[{name!r}]", value)
    return tuple(found[site.name.split(".transformer_blocks")[0]] for site in sites)


def _set_block(found: dict[str, float], layers: Sequence[str], field: str, value: object) -> None:
    """A list is meant for the layers of every block of `layers`; of one number, for all of them."""
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        blocks.setdefault(layer.split(".attentions")[0], []).append(layer)
    if isinstance(value, Mapping):
        named = {f"block_{block.split('.')[1]}": block for block in blocks if "." in block}
        for name, inner in value.items():
            if name not in named:
                known = (
                    f"one of {', '.join(named)}: blocks with cross-attention" if named else "a number: it is one block"
                )
                raise RequestError(field, name, known)
            _set_block(found, blocks[named[name]], f"{field}[{name!r}]", inner)
        return
    values = value if isinstance(value, tuple) else (value,)
    for own in blocks.values():
        if len(values) not in (1, len(own)):
            raise RequestError(field, f"{len(values)} scales", f"one, or one per layer: {len(own)}")
        found.update({layer: float(values[i % len(values)]) for i, layer in enumerate(own)})


def _masks(control: ImagePrompt, size: tuple[int, int]) -> Sequence[Tensor] | None:
    """[H, W] per image, or None."""
    if control.mask is None:
        return None
    return [read_mask(f"ImagePrompt.mask[{i}]", mask, size) for i, mask in enumerate(control.mask)]  # type: ignore[arg-type, var-annotated]


class _Part:
    """Tokens that share a softmax: keys and values of the conditional and the unconditional rows, and their mask."""

    def __init__(self, conditional: tuple[KV, ...], unconditional: tuple[KV, ...], mask: Tensor | None) -> None:
        self.kv = {True: conditional, False: unconditional}
        self.mask = mask


def _segments(
    backend: ReferenceBackend, adapter: IPAdapter, tokens: Tensor, empty: Tensor, masks: Sequence[Tensor] | None
) -> list[_Part]:
    """tokens, empty: [B, T, D]."""
    if masks is None:
        joined = [backend.image_prompt_kv(adapter, t.flatten(0, 1)[None]) for t in (tokens, empty)]
        return [_Part(joined[0], joined[1], None)]
    blank = backend.image_prompt_kv(adapter, empty[:1])
    return [_Part(backend.image_prompt_kv(adapter, tokens[i : i + 1]), blank, mask) for i, mask in enumerate(masks)]


def _add(
    backend: ReferenceBackend,
    rows: Sequence[RowPlan],
    part: _Part,
    scales: Sequence[float],
    active: StepScales,
) -> None:
    for window, members in by_window(rows).items():
        weights = _weights(backend, part.mask, window, scales)
        for row in members:
            row.segments.append(SegmentPlan(part.kv[row.conditional], active, weights))


def _weights(
    backend: ReferenceBackend, mask: Tensor | None, window: Window | None, scales: Sequence[float]
) -> tuple[float | Tensor, ...]:
    """Per site: the scale, times the mask [N] at its level."""
    if mask is None:
        return tuple(scales)
    config, factor = backend.model.unet.config, backend.model.vae.config.scale
    seen = mask if window is None else window.scaled(factor).cut(mask)
    levels = [level.flatten().to(backend.device) for level in bicubic_levels(seen, factor, config.levels)]
    made: dict[tuple[int, float], Tensor] = {}
    for site, scale in zip(attention_sites(config), scales, strict=True):
        made.setdefault((site.level, scale), levels[site.level] * scale)
    return tuple(made[site.level, scale] for site, scale in zip(attention_sites(config), scales, strict=True))
