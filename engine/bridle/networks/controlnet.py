"""ControlNet: a copy of the U-Net's encoder that reads a control image and returns residuals."""

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor

from bridle.networks import layers, shapes
from bridle.networks.configs import ControlNetConfig
from bridle.networks.layout import encoder_layout, level_sizes
from bridle.networks.shared_start import SharedStart
from bridle.networks.trunk import make_trunk, run_encoder, run_middle
from bridle.rows import Branch, Residual, Residuals
from bridle_kernels.ops import Ops

_HINT = "controlnet_cond_embedding"


def tensor_shapes(config: ControlNetConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network under its diffusers name."""
    expected = shapes.encoder_decoder(config)
    widths = config.hint_widths
    expected |= shapes.conv(f"{_HINT}.conv_in", config.hint_channels, widths[0])
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        expected |= shapes.conv(f"{_HINT}.blocks.{2 * index}", inputs, inputs)
        expected |= shapes.conv(f"{_HINT}.blocks.{2 * index + 1}", inputs, outputs)
    expected |= shapes.conv(f"{_HINT}.conv_out", widths[-1], config.block_out_channels[0])
    for k, width in enumerate(encoder_layout(config).widths):
        expected |= shapes.conv(f"controlnet_down_blocks.{k}", width, width, 1)
    width = config.block_out_channels[-1]
    return expected | shapes.conv("controlnet_mid_block", width, width, 1)


def encode_hint(ops: Ops, weights: Mapping[str, Tensor], config: ControlNetConfig, image: Tensor) -> Tensor:
    """The control image as features [R, C0, h, w]; independent of time, so once per image.

    image: [R, hint_channels, 8h, 8w] in [0, 1], RGB. Networks trained on BGR get their channels reversed here.
    """
    if config.channel_order == "bgr":
        image = ops.concat([ops.columns(image, c, c + 1) for c in reversed(range(config.hint_channels))])
    x = layers.conv(ops, weights, f"{_HINT}.conv_in", image, activation="silu")
    for index in range(len(config.hint_widths) - 1):
        x = layers.conv(ops, weights, f"{_HINT}.blocks.{2 * index}", x, activation="silu")
        x = layers.conv(ops, weights, f"{_HINT}.blocks.{2 * index + 1}", x, stride=2, activation="silu")
    return layers.conv(ops, weights, f"{_HINT}.conv_out", x)


def controlnet(
    ops: Ops,
    weights: Mapping[str, Tensor],
    config: ControlNetConfig,
    branch: Branch,
    sample: Tensor,
    start: SharedStart | None = None,
) -> tuple[Tensor, ...]:
    """Its residuals without any scale, one per skip connection and one for the middle block.

    sample: [r, in_channels, h, w], the rows it runs on. Each residual is [r, C, h', w'], or its spatial mean [r, C, 1, 1]
    where the branch says so. start: how these rows share their first layers; the result is the same without.
    """
    size = (sample.shape[-2], sample.shape[-1])
    trunk = make_trunk(ops, weights, config, branch.time, branch.context, size)
    first, hint = (x if start is None else start.narrowed(ops, x) for x in (sample, branch.hint))
    x = ops.name_point(layers.conv(ops, weights, "conv_in", first, residual=hint), "block.0")
    x, skips = run_encoder(trunk, x, {}, start)
    middle = ops.name_point(run_middle(trunk, x), "mid")
    zero_convs = [*(f"controlnet_down_blocks.{k}" for k in range(len(skips))), "controlnet_mid_block"]
    outputs = zip(zero_convs, [*skips, middle], strict=True)
    residuals = tuple(layers.conv(ops, weights, name, features, padding=0) for name, features in outputs)
    return pooled(ops, branch, residuals)


def pooled(ops: Ops, branch: Branch, residuals: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Residuals, or their spatial means where the branch says so."""
    return tuple(ops.spatial_mean(r) for r in residuals) if branch.global_pool else residuals


def branch_sample(ops: Ops, branch: Branch, sample: Tensor) -> Tensor:
    """What of a batch's sample [R, C, h, w] a branch sees: its rows, and the channels of latents."""
    mine = sample if branch.rows == tuple(range(sample.shape[0])) else ops.rows(sample, branch.rows)
    return ops.columns(mine, 0, branch.config.in_channels)


def branch_residuals(ops: Ops, branch: Branch, sample: Tensor) -> Residuals:
    """Runs a branch on its rows of `sample` [R, C, h, w] and names its residuals by point."""
    mine = branch_sample(ops, branch, sample)
    values = controlnet(ops, branch.weights, branch.config, branch, mine)
    return named_residuals(ops, branch, sample, values)


def named_residuals(ops: Ops, branch: Branch, sample: Tensor, values: tuple[Tensor, ...]) -> Residuals:
    """What a branch on a batch's sample [R, C, h, w] computed, by point, with its strengths, rows and masks."""
    rows = tuple(range(sample.shape[0]))
    names = [*(f"skip.{k}" for k in range(len(values) - 1)), "mid"]
    sizes = residual_sizes(branch.config, (sample.shape[-2], sample.shape[-1]))
    where = None if branch.rows == rows else branch.rows
    return {
        name: (Residual(value, branch.scale[:, index], where, _mask(ops, branch, sizes[index])),)
        for index, (name, value) in enumerate(zip(names, values, strict=True))
    }


def residual_sizes(config: ControlNetConfig, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(height, width) of every residual."""
    levels = [0]
    for stage in encoder_layout(config).stages:
        levels.append(stage.level + 1 if stage.resample else stage.level)
    levels.append(config.levels - 1)
    sizes = level_sizes(size, config.levels)
    return tuple(sizes[level] for level in levels)


def _mask(ops: Ops, branch: Branch, size: tuple[int, int]) -> Tensor | None:
    return None if branch.mask is None else ops.resize_mask(branch.mask, size)
