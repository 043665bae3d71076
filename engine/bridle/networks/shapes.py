"""Shapes of the weights of the layers that networks are made of."""

from bridle.networks.configs import EncoderConfig
from bridle.networks.layout import Transformer, encoder_layout, res_blocks, transformers

Shapes = dict[str, tuple[int, ...]]


def conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Shapes:
    """A convolution with bias: weight [outputs, inputs, kernel, kernel]."""
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """A linear layer with bias: weight [outputs, inputs]."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, channels: int) -> Shapes:
    """Scale and shift of a normalisation."""
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def res_block(name: str, inputs: int, outputs: int, time_dim: int | None) -> Shapes:
    """A residual block, with a time projection where `time_dim` is given and a 1x1 shortcut where the width changes."""
    shapes = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", inputs, outputs)
    shapes |= norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2", outputs, outputs)
    if time_dim is not None:
        shapes |= linear(f"{name}.time_emb_proj", time_dim, outputs)
    if inputs != outputs:
        shapes |= conv(f"{name}.conv_shortcut", inputs, outputs, 1)
    return shapes


def transformer(block: Transformer, context: int, linear_projection: bool) -> Shapes:
    """A stack of transformer blocks with its normalisation and projections."""
    name, width = block.name, block.width
    kernel = () if linear_projection else (1, 1)
    shapes: Shapes = norm(f"{name}.norm", width)
    for projection in ("proj_in", "proj_out"):
        shapes |= {f"{name}.{projection}.weight": (width, width, *kernel), f"{name}.{projection}.bias": (width,)}
    for index in range(block.depth):
        shapes |= _transformer_block(f"{name}.transformer_blocks.{index}", width, context)
    return shapes


def _transformer_block(name: str, width: int, context: int) -> Shapes:
    shapes = _attention(f"{name}.attn1", width, width) | _attention(f"{name}.attn2", width, context)
    for index in (1, 2, 3):
        shapes |= norm(f"{name}.norm{index}", width)
    return shapes | linear(f"{name}.ff.net.0.proj", width, 8 * width) | linear(f"{name}.ff.net.2", 4 * width, width)


def _attention(name: str, width: int, context: int) -> Shapes:
    keys = {f"{name}.to_q.weight": (width, width)}
    keys |= {f"{name}.{part}.weight": (width, context) for part in ("to_k", "to_v")}
    return keys | linear(f"{name}.to_out.0", width, width)


def encoder_decoder(config: EncoderConfig) -> Shapes:
    """conv_in, embeddings, and all residual blocks, transformers and downsamplers that `config` has."""
    width, time_dim = config.block_out_channels[0], config.time_dim
    shapes = conv("conv_in", config.in_channels, width)
    shapes |= linear("time_embedding.linear_1", width, time_dim) | linear("time_embedding.linear_2", time_dim, time_dim)
    if config.added_dim is not None:
        shapes |= linear("add_embedding.linear_1", config.added_dim, time_dim)
        shapes |= linear("add_embedding.linear_2", time_dim, time_dim)
    for block in res_blocks(config):
        shapes |= res_block(block.name, block.inputs, block.outputs, time_dim)
    for _, stack in transformers(config):
        shapes |= transformer(stack, config.cross_attention_dim, config.linear_projection)
    for stage in encoder_layout(config).stages:
        if stage.resample:
            channels = config.block_out_channels[stage.level]
            shapes |= conv(stage.resample, channels, channels)
    return shapes
