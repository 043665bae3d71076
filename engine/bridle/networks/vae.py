"""The image autoencoder (diffusers `AutoencoderKL`)."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from bridle.networks import layers, shapes
from bridle.networks.blocks import res_block
from bridle.networks.configs import VaeConfig
from bridle.networks.tiles import quarter_overlap, run_tiles
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.ops import Ops

Weights = Mapping[str, Tensor]

EPS = 1e-6


def tensor_shapes(config: VaeConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network under its diffusers name."""
    channels, latent = config.block_out_channels, config.latent_channels
    expected = shapes.conv("encoder.conv_in", config.in_channels, channels[0])
    expected |= shapes.conv("decoder.conv_in", latent, channels[-1])
    for name, inputs, outputs in (*_encoder_blocks(config), *_decoder_blocks(config)):
        expected |= shapes.res_block(name, inputs, outputs, None)
    for level in range(len(channels) - 1):
        expected |= shapes.conv(_downsampler(level), channels[level], channels[level])
        expected |= shapes.conv(_upsampler(level), channels[-1 - level], channels[-1 - level])
    expected |= _middle_shapes("encoder", config) | _middle_shapes("decoder", config)
    expected |= shapes.norm("encoder.conv_norm_out", channels[-1]) | shapes.norm("decoder.conv_norm_out", channels[0])
    expected |= shapes.conv("encoder.conv_out", channels[-1], 2 * latent)
    expected |= shapes.conv("decoder.conv_out", channels[0], config.out_channels)
    if config.quant_conv:
        expected |= shapes.conv("quant_conv", 2 * latent, 2 * latent, 1)
    if config.post_quant_conv:
        expected |= shapes.conv("post_quant_conv", latent, latent, 1)
    return expected


def vae_encode(ops: Ops, weights: Weights, config: VaeConfig, image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents, both [R, latent_channels, h, w] and not yet scaled.

    image: [R, in_channels, H, W] in [-1, 1]. The log variance is not clamped.
    """
    return split_moments(ops, config, vae_moments(ops, weights, config, image))


def moments_in_tiles(config: VaeConfig, image: Tensor, moments: Callable[[Tensor], Tensor]) -> Tensor:
    """`vae_moments`, called `moments`, on tiles of `config.sample_size` pixels; identical for an image of one tile."""
    return run_tiles(image, quarter_overlap(config.sample_size, config.sample_size // config.scale), moments)


def split_moments(ops: Ops, config: VaeConfig, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of `vae_moments`."""
    latent = config.latent_channels
    return ops.columns(moments, 0, latent), ops.columns(moments, latent, 2 * latent)


def vae_moments(ops: Ops, weights: Weights, config: VaeConfig, image: Tensor) -> Tensor:
    """`vae_encode` as one tensor [R, 2 * latent_channels, h, w]."""
    x = layers.conv(ops, weights, "encoder.conv_in", image)
    for level in range(len(config.block_out_channels)):
        for layer in range(config.layers):
            x = res_block(ops, weights, f"encoder.down_blocks.{level}.resnets.{layer}", x, config.groups, EPS)
        if level + 1 < len(config.block_out_channels):
            # The encoder was trained with padding on the right and bottom only.
            x = layers.conv(ops, weights, _downsampler(level), x, stride=2, padding=(0, 1, 0, 1))
    x = _middle(ops, weights, "encoder", config, x)
    x = _head(ops, weights, "encoder", config, x)
    return layers.conv(ops, weights, "quant_conv", x, padding=0) if config.quant_conv else x


def vae_decode(ops: Ops, weights: Weights, config: VaeConfig, latents: Tensor) -> Tensor:
    """The image [R, out_channels, H, W], about [-1, 1] and not clamped.

    latents: [R, latent_channels, h, w], already divided by `config.scaling_factor`.
    """
    x = layers.conv(ops, weights, "post_quant_conv", latents, padding=0) if config.post_quant_conv else latents
    x = _middle(ops, weights, "decoder", config, layers.conv(ops, weights, "decoder.conv_in", x))
    size = (latents.shape[-2], latents.shape[-1])
    for level in range(len(config.block_out_channels)):
        for layer in range(config.layers + 1):
            x = res_block(ops, weights, f"decoder.up_blocks.{level}.resnets.{layer}", x, config.groups, EPS)
        if level + 1 < len(config.block_out_channels):
            size = (2 * size[0], 2 * size[1])
            x = layers.conv(ops, weights, _upsampler(level), x, upsample=size)
    return _head(ops, weights, "decoder", config, x)


def decode_in_tiles(config: VaeConfig, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """`vae_decode`, called `decode`, on tiles of `config.sample_size` pixels; identical for latents of one tile."""
    return run_tiles(latents, quarter_overlap(config.sample_size // config.scale, config.sample_size), decode)


def _encoder_blocks(config: VaeConfig) -> Iterator[tuple[str, int, int]]:
    inputs = config.block_out_channels[0]
    for level, width in enumerate(config.block_out_channels):
        for layer in range(config.layers):
            yield f"encoder.down_blocks.{level}.resnets.{layer}", inputs, width
            inputs = width


def _decoder_blocks(config: VaeConfig) -> Iterator[tuple[str, int, int]]:
    inputs = config.block_out_channels[-1]
    for level, width in enumerate(reversed(config.block_out_channels)):
        for layer in range(config.layers + 1):
            yield f"decoder.up_blocks.{level}.resnets.{layer}", inputs, width
            inputs = width


def _downsampler(level: int) -> str:
    return f"encoder.down_blocks.{level}.downsamplers.0.conv"


def _upsampler(level: int) -> str:
    return f"decoder.up_blocks.{level}.upsamplers.0.conv"


def _middle_shapes(part: str, config: VaeConfig) -> shapes.Shapes:
    width = config.block_out_channels[-1]
    expected: shapes.Shapes = {}
    for index in (0, 1):
        expected |= shapes.res_block(f"{part}.mid_block.resnets.{index}", width, width, None)
    if config.mid_attention:
        name = f"{part}.mid_block.attentions.0"
        expected |= shapes.norm(f"{name}.group_norm", width)
        for projection in ("to_q", "to_k", "to_v", "to_out.0"):
            expected |= shapes.linear(f"{name}.{projection}", width, width)
    return expected


def _middle(ops: Ops, weights: Weights, part: str, config: VaeConfig, x: Tensor) -> Tensor:
    x = res_block(ops, weights, f"{part}.mid_block.resnets.0", x, config.groups, EPS)
    if config.mid_attention:
        x = _attention(ops, weights, f"{part}.mid_block.attentions.0", config.groups, x)
    return res_block(ops, weights, f"{part}.mid_block.resnets.1", x, config.groups, EPS)


def _attention(ops: Ops, weights: Weights, name: str, groups: int, x: Tensor) -> Tensor:
    tokens = ops.tokens(layers.group_norm(ops, weights, f"{name}.group_norm", x, groups, EPS))
    parts = [f"{name}.{part}" for part in ("to_q", "to_k", "to_v")]
    biases = [weights[f"{part}.bias"] for part in parts]
    q, k, v = ops.project_heads(tokens, [weights[f"{part}.weight"] for part in parts], 1, biases)
    out = ops.attention(q, (Segment((Piece(k, v),)),))
    projected = layers.linear(ops, weights, f"{name}.to_out.0", out, residual=ops.tokens(x))
    return ops.image(projected, (x.shape[-2], x.shape[-1]))


def _head(ops: Ops, weights: Weights, part: str, config: VaeConfig, x: Tensor) -> Tensor:
    x = layers.group_norm(ops, weights, f"{part}.conv_norm_out", x, config.groups, EPS, activation="silu")
    return layers.conv(ops, weights, f"{part}.conv_out", x)
