"""The denoising U-Net of Stable Diffusion 1.x, 2.x and XL, and of small models of the same form."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from bridle.errors import UnsupportedError
from bridle.networks import layers, shapes
from bridle.networks.configs import EncoderConfig, UNetConfig
from bridle.networks.controlnet import branch_residuals
from bridle.networks.layout import Stage, decoder_layout, encoder_layout
from bridle.networks.shared_start import SharedStart
from bridle.networks.trunk import (
    Site,
    Trunk,
    added_embedding,
    attention_sites,
    cross_kv,
    make_trunk,
    run_encoder,
    run_middle,
    time_table,
)
from bridle.rows import Primitive, Residual, Residuals, Rows
from bridle_kernels.ops import Ops

__all__ = [
    "SERVED",
    "Site",
    "adapter_points",
    "added_embedding",
    "all_residuals",
    "attention_sites",
    "controlnet_points",
    "cross_kv",
    "merged_residuals",
    "tensor_shapes",
    "time_table",
    "unet",
]

SERVED = frozenset(
    {
        Primitive.INPUT_CHANNELS,
        Primitive.RESIDUALS,
        Primitive.CROSS_SEGMENTS,
        Primitive.ATTENTION_BIAS,
        Primitive.MAP_MIXING,
        Primitive.MAP_CAPTURE,
        Primitive.COLUMN_MASS,
        Primitive.CROSS_ROW,
    }
)
"""Primitives of `Rows.primitives()` that `unet` computes; all others are refused by name."""


def tensor_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network under its diffusers name."""
    width = config.block_out_channels[0]
    expected = shapes.encoder_decoder(config)
    for stage in decoder_layout(config):
        if stage.resample:
            expected |= shapes.conv(stage.resample, stage.width, stage.width)
    return expected | shapes.norm("conv_norm_out", width) | shapes.conv("conv_out", width, config.out_channels)


def controlnet_points(config: EncoderConfig) -> tuple[str, ...]:
    """Points of a ControlNet's residuals, in its own order: one per skip connection, then the middle block."""
    return (*(f"skip.{k}" for k in range(len(encoder_layout(config).widths))), "mid")


def adapter_points(config: EncoderConfig) -> tuple[str, ...]:
    """Points of an adapter's feature maps: after the last layer of each encoder level, then the middle block.

    An adapter with fewer maps than points uses the first ones. A level without attention takes its map after its
    downsampler, as published XL adapters were trained.
    """
    return (*(f"block.{k}" for k in encoder_layout(config).last_layers), "mid")


def all_residuals(ops: Ops, rows: Rows) -> Residuals:
    """The static residuals of `rows` and those that its branches compute from `rows.sample`, by point."""
    return merged_residuals(rows.residuals, [branch_residuals(ops, branch, rows.sample) for branch in rows.branches])


def merged_residuals(static: Residuals | None, computed: Iterable[Residuals]) -> dict[str, tuple[Residual, ...]]:
    """By point, static ones first, then those of every branch in order."""
    merged: dict[str, tuple[Residual, ...]] = dict(static or {})
    for residuals in computed:
        for point, terms in residuals.items():
            merged[point] = merged.get(point, ()) + terms
    return merged


def unet(
    ops: Ops,
    weights: Mapping[str, Tensor],
    config: UNetConfig,
    rows: Rows,
    residuals: Residuals,
    start: SharedStart | None = None,
) -> Tensor:
    """One evaluation of a batch of rows: [R, out_channels, h, w].

    residuals: everything to be added at named points, `all_residuals(ops, rows)` or a part of it. A latent side may have
    any size; a level below an odd side rounds up. start: how rows share their first layers, of rows that `starts_alike`; the
    result is the same without. Raises UnsupportedError for a primitive that is not computed here.
    """
    for primitive in sorted(rows.primitives() - SERVED, key=lambda p: p.value):
        raise UnsupportedError(primitive.value, "networks", "it has no implementation yet")
    size = (rows.sample.shape[-2], rows.sample.shape[-1])
    trunk = make_trunk(ops, weights, config, rows.time, rows.context, size, rows.self_rows)
    x = ops.name_point(layers.conv(ops, weights, "conv_in", _joined(ops, rows, start)), "block.0")
    x, skips = run_encoder(trunk, _add(ops, residuals, "conv_in", x), residuals, start)
    x = _add(ops, residuals, "mid", ops.name_point(run_middle(trunk, x), "mid"))
    x = _decode(trunk, decoder_layout(config), x, skips, residuals)
    x = layers.group_norm(ops, weights, "conv_norm_out", x, config.groups, config.eps, activation="silu")
    return layers.conv(ops, weights, "conv_out", x)


def _joined(ops: Ops, rows: Rows, start: SharedStart | None) -> Tensor | tuple[Tensor, Tensor]:
    """What conv_in reads: all rows, or one of each kind."""
    sample, extra = rows.sample, rows.extra_channels
    if start is not None:
        sample = start.narrowed(ops, sample)
        extra = None if extra is None else start.narrowed(ops, extra)
    return sample if extra is None else (sample, extra)


def _add(ops: Ops, residuals: Residuals, point: str, x: Tensor) -> Tensor:
    found = residuals.get(point)
    return ops.residual_add(x, found) if found else x


def _decode(trunk: Trunk, stages: Sequence[Stage], x: Tensor, skips: list[Tensor], residuals: Residuals) -> Tensor:
    for index, stage in enumerate(stages):
        k = len(skips) - 1
        added = residuals.get(f"skip.{k}") or ()
        x = trunk.run(stage, trunk.ops.skip_connection(x, skips.pop(), added))
        if stage.resample:
            size = trunk.sizes[stage.level - 1]
            x = layers.conv(trunk.ops, trunk.weights, stage.resample, x, upsample=size)
        x = trunk.ops.name_point(x, f"decoder.{index}")
    return x
