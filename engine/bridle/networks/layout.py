"""Where everything of a U-Net is: its blocks in forward order with the names and shapes of their weights.

One description serves the forward functions, the time table, the list of attention sites and the expected tensors, so
that they cannot disagree. Names are diffusers' module paths.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from bridle.networks.configs import EncoderConfig, UNetConfig


@dataclass(frozen=True, slots=True)
class ResBlock:
    """A residual block from `inputs` to `outputs` channels. shift: its first column in the time table."""

    name: str
    inputs: int
    outputs: int
    shift: int


@dataclass(frozen=True, slots=True)
class Transformer:
    """A stack of `depth` transformer blocks on `width` channels. site: index of its first cross-attention."""

    name: str
    width: int
    heads: int
    depth: int
    site: int


@dataclass(frozen=True, slots=True)
class Stage:
    """One block of the encoder or decoder: residual block, then transformer, then resampling; each may be absent.

    level: resolution on which the residual block runs; 0 is the latent's, each next one halves it.
    resample: name of the down- or upsampling convolution. skip: channels of the skip connection a decoder block reads.
    """

    level: int
    res_block: ResBlock | None
    transformer: Transformer | None = None
    resample: str | None = None
    skip: int = 0

    @property
    def width(self) -> int:
        """Output channels; only stages with a residual block know it."""
        assert self.res_block is not None
        return self.res_block.outputs


@dataclass(frozen=True, slots=True)
class Encoder:
    """conv_in, the stages after it, and the middle block.

    widths: channels of every skip connection, conv_in's first. last_layers: per level, index of the encoder block that
    an adapter's feature map is added after.
    """

    stages: tuple[Stage, ...]
    widths: tuple[int, ...]
    last_layers: tuple[int, ...]
    mid_first: ResBlock
    mid_transformer: Transformer | None
    mid_second: ResBlock | None


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Next free column of the time table and next free attention site."""

    shift: int = 0
    site: int = 0


@lru_cache(maxsize=64)
def encoder_layout(config: EncoderConfig) -> Encoder:
    """The encoder and middle block of a U-Net or ControlNet."""
    stages: list[Stage] = []
    widths = [config.block_out_channels[0]]
    last_layers = []
    cursor = _Cursor()
    for level, width in enumerate(config.block_out_channels):
        for layer in range(config.layers[level]):
            stage, cursor = _encoder_stage(config, level, layer, widths[-1], cursor)
            stages.append(stage)
            widths.append(width)
        last_layers.append(len(stages))
        if level + 1 < config.levels:
            stages.append(Stage(level, None, resample=f"down_blocks.{level}.downsamplers.0.conv"))
            widths.append(width)
            if not config.attention[level]:
                last_layers[-1] = len(stages)
    return Encoder(tuple(stages), tuple(widths), tuple(last_layers), *_mid(config, cursor))


def _encoder_stage(
    config: EncoderConfig, level: int, layer: int, inputs: int, cursor: _Cursor
) -> tuple[Stage, _Cursor]:
    width = config.block_out_channels[level]
    prefix = f"down_blocks.{level}"
    block = ResBlock(f"{prefix}.resnets.{layer}", inputs, width, cursor.shift)
    depth = config.depth[level] if config.attention[level] else 0
    name = f"{prefix}.attentions.{layer}"
    transformer = Transformer(name, width, config.heads[level], depth, cursor.site) if depth else None
    return Stage(level, block, transformer), _Cursor(cursor.shift + width, cursor.site + depth)


def _mid(config: EncoderConfig, cursor: _Cursor) -> tuple[ResBlock, Transformer | None, ResBlock | None]:
    width = config.block_out_channels[-1]
    first = ResBlock("mid_block.resnets.0", width, width, cursor.shift)
    if not config.mid_attention:
        return first, None, None
    transformer = Transformer("mid_block.attentions.0", width, config.heads[-1], config.depth[-1], cursor.site)
    return first, transformer, ResBlock("mid_block.resnets.1", width, width, cursor.shift + width)


@lru_cache(maxsize=64)
def decoder_layout(config: UNetConfig) -> tuple[Stage, ...]:
    """The decoder's stages in forward order. Stage j reads skip connection `len(decoder) - 1 - j`."""
    encoder = encoder_layout(config)
    skips = list(encoder.widths)
    stages: list[Stage] = []
    cursor = _decoder_start(encoder)
    inputs = config.block_out_channels[-1]
    for block, level in enumerate(reversed(range(config.levels))):
        for layer in range(config.layers[level] + 1):
            stage, cursor = _decoder_stage(config, block, layer, inputs, skips.pop(), cursor)
            stages.append(stage)
            inputs = config.block_out_channels[level]
    return tuple(stages)


def _decoder_start(encoder: Encoder) -> _Cursor:
    last = encoder.mid_second or encoder.mid_first
    transformer = encoder.mid_transformer
    sites = [s.transformer.site + s.transformer.depth for s in encoder.stages if s.transformer]
    site = transformer.site + transformer.depth if transformer else max(sites, default=0)
    return _Cursor(last.shift + last.outputs, site)


def _decoder_stage(
    config: UNetConfig, block: int, layer: int, inputs: int, skip: int, cursor: _Cursor
) -> tuple[Stage, _Cursor]:
    level = config.levels - 1 - block
    width = config.block_out_channels[level]
    prefix = f"up_blocks.{block}"
    res_block = ResBlock(f"{prefix}.resnets.{layer}", inputs + skip, width, cursor.shift)
    depth = config.depth[level] if config.up_attention[block] else 0
    name = f"{prefix}.attentions.{layer}"
    transformer = Transformer(name, width, config.heads[level], depth, cursor.site) if depth else None
    last = layer == config.layers[level] and level > 0
    resample = f"{prefix}.upsamplers.0.conv" if last else None
    return Stage(level, res_block, transformer, resample, skip), _Cursor(cursor.shift + width, cursor.site + depth)


def level_sizes(size: tuple[int, int], levels: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of every level below a latent of `size`: halved and rounded up, as strided convolutions do."""
    return tuple((-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in range(levels))


def encoder_res_blocks(config: EncoderConfig) -> Iterator[ResBlock]:
    """Residual blocks of encoder and middle in forward order."""
    encoder = encoder_layout(config)
    yield from (stage.res_block for stage in encoder.stages if stage.res_block)
    yield encoder.mid_first
    if encoder.mid_second:
        yield encoder.mid_second


def encoder_transformers(config: EncoderConfig) -> Iterator[tuple[int, Transformer]]:
    """(level, transformer) of encoder and middle in forward order."""
    encoder = encoder_layout(config)
    yield from ((stage.level, stage.transformer) for stage in encoder.stages if stage.transformer)
    if encoder.mid_transformer:
        yield config.levels - 1, encoder.mid_transformer


def res_blocks(config: EncoderConfig) -> Iterator[ResBlock]:
    """All residual blocks in forward order: encoder, middle and, in a U-Net, decoder."""
    yield from encoder_res_blocks(config)
    if isinstance(config, UNetConfig):
        yield from (stage.res_block for stage in decoder_layout(config) if stage.res_block)


def transformers(config: EncoderConfig) -> Iterator[tuple[int, Transformer]]:
    """(level, transformer) of every transformer in forward order: encoder, middle and, in a U-Net, decoder."""
    yield from encoder_transformers(config)
    if isinstance(config, UNetConfig):
        yield from ((stage.level, stage.transformer) for stage in decoder_layout(config) if stage.transformer)
