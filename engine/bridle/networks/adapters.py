"""T2I-Adapter: a small network that turns a control image into feature maps for the U-Net's encoder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from bridle.networks import layers, shapes
from bridle.networks.configs import AdapterConfig
from bridle_kernels.ops import Ops

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Level:
    """One feature map: its module path, widths and whether the image is halved first."""

    name: str
    inputs: int
    outputs: int
    halve: bool


def _levels(config: AdapterConfig) -> Iterator[_Level]:
    unshuffled = config.in_channels * config.downscale**2
    light = config.kind == "light_adapter"
    outputs = config.channels + config.channels[-1:] if light else config.channels
    inputs = (unshuffled if light else outputs[0], *outputs[:-1])
    for index, (before, after) in enumerate(zip(inputs, outputs, strict=True)):
        halve = index == 2 if config.kind == "full_adapter_xl" else index > 0
        yield _Level(f"adapter.body.{index}", before, after, halve)


def tensor_shapes(config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network under its diffusers name."""
    unshuffled = config.in_channels * config.downscale**2
    if config.kind == "light_adapter":
        return {key: shape for level in _levels(config) for key, shape in _light_shapes(config, level).items()}
    expected = shapes.conv("adapter.conv_in", unshuffled, config.channels[0])
    for level in _levels(config):
        if level.inputs != level.outputs:
            expected |= shapes.conv(f"{level.name}.in_conv", level.inputs, level.outputs, 1)
        for index in range(config.layers):
            expected |= shapes.conv(f"{level.name}.resnets.{index}.block1", level.outputs, level.outputs)
            expected |= shapes.conv(f"{level.name}.resnets.{index}.block2", level.outputs, level.outputs, 1)
    return expected


def _light_shapes(config: AdapterConfig, level: _Level) -> shapes.Shapes:
    narrow = level.outputs // 4
    expected = shapes.conv(f"{level.name}.in_conv", level.inputs, narrow, 1)
    for index in range(config.layers):
        for block in ("block1", "block2"):
            expected |= shapes.conv(f"{level.name}.resnets.{index}.{block}", narrow, narrow)
    return expected | shapes.conv(f"{level.name}.out_conv", narrow, level.outputs, 1)


def adapter(ops: Ops, weights: Weights, config: AdapterConfig, image: Tensor) -> tuple[Tensor, ...]:
    """Its feature maps [R, channels[j], h_j, w_j], finest first; independent of time, so once per image.

    image: [R, in_channels, H, W] in [0, 1], sides multiples of `downscale`. Halved sides round up.
    """
    x = ops.pixel_unshuffle(image, config.downscale)
    if config.kind != "light_adapter":
        x = layers.conv(ops, weights, "adapter.conv_in", x)
    level_of = _light_level if config.kind == "light_adapter" else _full_level
    features = []
    for level in _levels(config):
        x = ops.average_pool(x) if level.halve else x
        x = level_of(ops, weights, config, level, x)
        features.append(x)
    return tuple(features)


def _full_level(ops: Ops, weights: Weights, config: AdapterConfig, level: _Level, x: Tensor) -> Tensor:
    if level.inputs != level.outputs:
        x = layers.conv(ops, weights, f"{level.name}.in_conv", x, padding=0)
    for index in range(config.layers):
        x = _residual(ops, weights, f"{level.name}.resnets.{index}", x, padding=0)
    return x


def _light_level(ops: Ops, weights: Weights, config: AdapterConfig, level: _Level, x: Tensor) -> Tensor:
    x = layers.conv(ops, weights, f"{level.name}.in_conv", x, padding=0)
    for index in range(config.layers):
        x = _residual(ops, weights, f"{level.name}.resnets.{index}", x, padding=1)
    return layers.conv(ops, weights, f"{level.name}.out_conv", x, padding=0)


def _residual(ops: Ops, weights: Weights, name: str, x: Tensor, padding: int) -> Tensor:
    h = layers.conv(ops, weights, f"{name}.block1", x, activation="relu")
    return layers.conv(ops, weights, f"{name}.block2", h, padding=padding, residual=x)
