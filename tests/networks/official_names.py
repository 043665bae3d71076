"""Names that the official repositories give to the modules of these networks, written from their published layouts.

Independent of the key maps that load checkpoints, so that the golden vectors test those as well.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from bridle.networks.configs import AdapterConfig, ControlNetConfig, EncoderConfig, UNetConfig
from bridle.networks.layout import Stage, decoder_layout, encoder_layout

RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def read_official(weights: Mapping[str, Tensor], names: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    """float32 tensors under diffusers names. names: diffusers module path -> official module path."""
    read = {}
    for mine, official in names.items():
        for key, tensor in weights.items():
            if key.startswith(f"{prefix}{official}."):
                read[mine + key.removeprefix(prefix + official)] = tensor.float()
    return read


def unet_names(config: UNetConfig) -> dict[str, str]:
    """Module paths of a U-Net."""
    names = dict(_encoder(config))
    for index, stage in enumerate(decoder_layout(config)):
        names |= _stage(stage, f"output_blocks.{index}")
        if stage.resample:
            names[stage.resample] = f"output_blocks.{index}.{2 if stage.transformer else 1}.conv"
    return names | {"conv_norm_out": "out.0", "conv_out": "out.2"}


def controlnet_names(config: ControlNetConfig) -> dict[str, str]:
    """Module paths of a ControlNet."""
    names = dict(_encoder(config))
    blocks = 2 * (len(config.hint_widths) - 1)
    hint = ["conv_in", *(f"blocks.{i}" for i in range(blocks)), "conv_out"]
    names |= {f"controlnet_cond_embedding.{name}": f"input_hint_block.{2 * i}" for i, name in enumerate(hint)}
    names |= {f"controlnet_down_blocks.{k}": f"zero_convs.{k}.0" for k in range(len(encoder_layout(config).widths))}
    return names | {"controlnet_mid_block": "middle_block_out.0"}


def adapter_names(config: AdapterConfig) -> dict[str, str]:
    """Module paths of a T2I-Adapter."""
    if config.kind == "light_adapter":
        names = {}
        for level in range(len(config.channels) + 1):
            names |= {f"adapter.body.{level}.{part}": f"body.{level}.{part}" for part in ("in_conv", "out_conv")}
            for index in range(config.layers):
                names[f"adapter.body.{level}.resnets.{index}"] = f"body.{level}.body.{index}"
        return names
    names = {"adapter.conv_in": "conv_in"}
    for level in range(len(config.channels)):
        for index in range(config.layers):
            official = f"body.{level * config.layers + index}"
            for block in ("block1", "block2"):
                names[f"adapter.body.{level}.resnets.{index}.{block}"] = f"{official}.{block}"
            names[f"adapter.body.{level}.in_conv"] = f"body.{level * config.layers}.in_conv"
    return names


def _encoder(config: EncoderConfig) -> Iterator[tuple[str, str]]:
    yield "conv_in", "input_blocks.0.0"
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    encoder = encoder_layout(config)
    for k, stage in enumerate(encoder.stages, 1):
        yield from _stage(stage, f"input_blocks.{k}").items()
        if stage.resample:
            yield stage.resample, f"input_blocks.{k}.0.op"
    middle = [encoder.mid_first, encoder.mid_second]
    for index, block in zip((0, 2), middle, strict=True):
        if block:
            yield from _inside(block.name, f"middle_block.{index}").items()
    if encoder.mid_transformer:
        yield encoder.mid_transformer.name, "middle_block.1"


def _stage(stage: Stage, official: str) -> dict[str, str]:
    names = _inside(stage.res_block.name, f"{official}.0") if stage.res_block else {}
    return names | ({stage.transformer.name: f"{official}.1"} if stage.transformer else {})


def _inside(name: str, official: str) -> dict[str, str]:
    return {f"{name}.{mine}": f"{official}.{theirs}" for mine, theirs in RES_BLOCK.items()}
