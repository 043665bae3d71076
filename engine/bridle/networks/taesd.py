"""The tiny image autoencoder (diffusers `AutoencoderTiny`)."""

from collections.abc import Mapping

from torch import Tensor

from bridle.networks import layers, shapes
from bridle.networks.configs import TaesdConfig
from bridle_kernels.ops import Ops

Weights = Mapping[str, Tensor]


def tensor_shapes(config: TaesdConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network under its diffusers name."""
    return _encoder_shapes(config) | _decoder_shapes(config)


def _encoder_shapes(config: TaesdConfig) -> shapes.Shapes:
    width, index = config.encoder_width, 0
    expected: shapes.Shapes = {}
    for stage, blocks in enumerate(config.encoder_blocks):
        name = f"encoder.layers.{index}"
        expected |= shapes.conv(name, config.in_channels, width) if stage == 0 else _bare_conv(name, width)
        expected |= _block_shapes("encoder", index + 1, blocks, width)
        index += 1 + blocks
    return expected | shapes.conv(f"encoder.layers.{index}", width, config.latent_channels)


def _decoder_shapes(config: TaesdConfig) -> shapes.Shapes:
    width, index = config.decoder_width, 2
    expected = shapes.conv("decoder.layers.0", config.latent_channels, width)
    for blocks in config.decoder_blocks[:-1]:
        expected |= _block_shapes("decoder", index, blocks, width)
        expected |= _bare_conv(f"decoder.layers.{index + blocks + 1}", width)
        index += blocks + 2
    expected |= _block_shapes("decoder", index, config.decoder_blocks[-1], width)
    return expected | shapes.conv(f"decoder.layers.{index + config.decoder_blocks[-1]}", width, config.out_channels)


def _bare_conv(name: str, width: int) -> shapes.Shapes:
    return {f"{name}.weight": (width, width, 3, 3)}


def _block_shapes(part: str, first: int, count: int, width: int) -> shapes.Shapes:
    expected: shapes.Shapes = {}
    for index in range(first, first + count):
        for layer in (0, 2, 4):
            expected |= shapes.conv(f"{part}.layers.{index}.conv.{layer}", width, width)
    return expected


def encode(ops: Ops, weights: Weights, config: TaesdConfig, image: Tensor) -> Tensor:
    """Latents [R, latent_channels, h, w] in the scale the sampler works in. image: [R, 3, H, W] in [-1, 1]."""
    x = ops.scale_shift(image, 0.5, 0.5)
    index = 0
    for stage, blocks in enumerate(config.encoder_blocks):
        x = layers.conv(ops, weights, f"encoder.layers.{index}", x, stride=1 if stage == 0 else 2)
        x = _blocks(ops, weights, "encoder", index + 1, blocks, x)
        index += 1 + blocks
    return layers.conv(ops, weights, f"encoder.layers.{index}", x)


def decode(ops: Ops, weights: Weights, config: TaesdConfig, latents: Tensor) -> Tensor:
    """The image [R, 3, H, W], about [-1, 1] and not clamped. latents: [R, latent_channels, h, w], the sampler's."""
    soft = ops.activation(ops.scale_shift(latents, 1 / 3, 0.0), "tanh")
    x = layers.conv(ops, weights, "decoder.layers.0", ops.scale_shift(soft, 3.0, 0.0), activation="relu")
    index, size = 2, (latents.shape[-2], latents.shape[-1])
    for blocks in config.decoder_blocks[:-1]:
        x = _blocks(ops, weights, "decoder", index, blocks, x)
        size = (2 * size[0], 2 * size[1])
        x = layers.conv(ops, weights, f"decoder.layers.{index + blocks + 1}", x, upsample=size)
        index += blocks + 2
    x = _blocks(ops, weights, "decoder", index, config.decoder_blocks[-1], x)
    x = layers.conv(ops, weights, f"decoder.layers.{index + config.decoder_blocks[-1]}", x)
    return ops.scale_shift(x, 2.0, -1.0)


def _blocks(ops: Ops, weights: Weights, part: str, first: int, count: int, x: Tensor) -> Tensor:
    """relu(conv(relu(conv(relu(conv x)))) + x), `count` times."""
    for index in range(first, first + count):
        name = f"{part}.layers.{index}.conv"
        h = layers.conv(ops, weights, f"{name}.0", x, activation="relu")
        h = layers.conv(ops, weights, f"{name}.2", h, activation="relu")
        x = layers.conv(ops, weights, f"{name}.4", h, residual=x, activation="relu")
    return x
