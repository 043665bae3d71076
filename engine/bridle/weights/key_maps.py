"""Names that the official repositories give to the modules of these networks, from their published layouts.

Each map goes from diffusers' module path to the official one (controls.md 0.6), so that it serves in both directions.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor, cat

from bridle.networks.configs import AdapterConfig, ControlNetConfig, EncoderConfig, UNetConfig, VaeConfig
from bridle.networks.layout import Stage, decoder_layout, encoder_layout

RES_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def to_diffusers(tensors: Mapping[str, Tensor], names: Mapping[str, str], prefix: str = "") -> dict[str, Tensor]:
    """Tensors under diffusers names. names: diffusers module path -> official one. Others are left out."""
    official = {prefix + theirs: mine for mine, theirs in names.items()}
    return _renamed(tensors, official)


def to_official(tensors: Mapping[str, Tensor], names: Mapping[str, str], prefix: str = "") -> dict[str, Tensor]:
    """The way back. Raises nothing: what `names` does not cover is left out."""
    return _renamed(tensors, {mine: prefix + theirs for mine, theirs in names.items()})


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The longest module path that a key starts with decides."""
    renamed = {}
    for key, tensor in tensors.items():
        module = key
        while module not in names and "." in module:
            module = module.rpartition(".")[0]
        if module in names:
            renamed[names[module] + key[len(module) :]] = tensor
    return renamed


def unet_names(config: UNetConfig) -> dict[str, str]:
    """Module paths of a U-Net."""
    names = dict(_encoder(config))
    for index, stage in enumerate(decoder_layout(config)):
        names |= _stage(stage, f"output_blocks.{index}")
        if stage.resample:
            names[stage.resample] = f"output_blocks.{index}.{2 if stage.transformer else 1}.conv"
    added = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    return names | added | {"conv_norm_out": "out.0", "conv_out": "out.2"}


def controlnet_names(config: ControlNetConfig) -> dict[str, str]:
    """Module paths of a ControlNet."""
    names = dict(_encoder(config))
    blocks = 2 * (len(config.hint_widths) - 1)
    hint = ["conv_in", *(f"blocks.{i}" for i in range(blocks)), "conv_out"]
    names |= {f"controlnet_cond_embedding.{name}": f"input_hint_block.{2 * i}" for i, name in enumerate(hint)}
    names |= {f"controlnet_down_blocks.{k}": f"zero_convs.{k}.0" for k in range(len(encoder_layout(config).widths))}
    names |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    return names | {"controlnet_mid_block": "middle_block_out.0"}


def adapter_names(config: AdapterConfig) -> dict[str, str]:
    """Module paths of a T2I-Adapter."""
    if config.kind == "light_adapter":
        names: dict[str, str] = {}
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


def diffusers_adapter_to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A T2I-Adapter's tensors under official names, whatever its widths: enough to read its configuration off."""
    light = "adapter.conv_in.weight" not in tensors
    layers = len({key.split(".")[4] for key in tensors if key.startswith("adapter.body.0.resnets.")})
    levels = len({key.split(".")[2] for key in tensors if key.startswith("adapter.body.")})
    kind, widths = ("light_adapter", levels - 1) if light else ("full_adapter", levels)
    config = AdapterConfig(kind=kind, in_channels=1, channels=(1,) * widths, layers=max(layers, 1), downscale=8)
    return to_official(tensors, adapter_names(config))


def vae_names(config: VaeConfig) -> dict[str, str]:
    """Module paths of an AutoencoderKL."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    levels = len(config.block_out_channels)
    for level in range(levels):
        names |= _vae_level(f"encoder.down_blocks.{level}", f"encoder.down.{level}", config.layers, "down")
        theirs = f"decoder.up.{levels - 1 - level}"
        names |= _vae_level(f"decoder.up_blocks.{level}", theirs, config.layers + 1, "up")
    for part in ("encoder", "decoder"):
        names |= {f"{part}.conv_in": f"{part}.conv_in", f"{part}.conv_out": f"{part}.conv_out"}
        names |= {f"{part}.conv_norm_out": f"{part}.norm_out"}
        for index in (0, 1):
            names |= _vae_block(f"{part}.mid_block.resnets.{index}", f"{part}.mid.block_{index + 1}")
        for mine, theirs in VAE_ATTENTION.items():
            names[f"{part}.mid_block.attentions.0.{mine}"] = f"{part}.mid.attn_1.{theirs}"
    return names


def _vae_level(mine: str, theirs: str, blocks: int, direction: str) -> dict[str, str]:
    names = {f"{mine}.{direction}samplers.0.conv": f"{theirs}.{direction}sample.conv"}
    for index in range(blocks):
        names |= _vae_block(f"{mine}.resnets.{index}", f"{theirs}.block.{index}")
    return names


def _vae_block(mine: str, theirs: str) -> dict[str, str]:
    shared = ("norm1", "conv1", "norm2", "conv2")
    return {f"{mine}.{part}": f"{theirs}.{part}" for part in shared} | {
        f"{mine}.conv_shortcut": f"{theirs}.nin_shortcut"
    }


def open_clip_names(layers: int) -> dict[str, str]:
    """Module paths of an OpenCLIP text encoder, without its fused projections (see `split_open_clip`)."""
    names = {"text_model.embeddings.token_embedding": "token_embedding", "text_model.final_layer_norm": "ln_final"}
    for index in range(layers):
        mine, theirs = f"text_model.encoder.layers.{index}", f"transformer.resblocks.{index}"
        names |= {f"{mine}.layer_norm1": f"{theirs}.ln_1", f"{mine}.layer_norm2": f"{theirs}.ln_2"}
        names |= {f"{mine}.mlp.fc1": f"{theirs}.mlp.c_fc", f"{mine}.mlp.fc2": f"{theirs}.mlp.c_proj"}
        names[f"{mine}.self_attn.out_proj"] = f"{theirs}.attn.out_proj"
    return names


def open_clip_to_transformers(tensors: Mapping[str, Tensor], layers: int, projects: bool) -> dict[str, Tensor]:
    """An OpenCLIP text encoder under transformers names: fused Q, K, V split, the projection transposed.

    tensors: without the checkpoint's prefix. layers: how many are kept; SD 2.x leaves out the last.
    """
    renamed = to_diffusers(tensors, open_clip_names(layers))
    if "positional_embedding" in tensors:
        renamed["text_model.embeddings.position_embedding.weight"] = tensors["positional_embedding"]
    for index in range(layers):
        for kind in ("weight", "bias"):
            fused = tensors.get(f"transformer.resblocks.{index}.attn.in_proj_{kind}")
            if fused is not None and fused.shape[0] % 3 == 0:
                for name, part in zip(("q_proj", "k_proj", "v_proj"), fused.chunk(3), strict=True):
                    renamed[f"text_model.encoder.layers.{index}.self_attn.{name}.{kind}"] = part
    if projects and "text_projection" in tensors:
        renamed["text_projection.weight"] = tensors["text_projection"].T
    return renamed


def transformers_to_open_clip(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The way back."""
    renamed = to_official(tensors, open_clip_names(layers))
    renamed["positional_embedding"] = tensors["text_model.embeddings.position_embedding.weight"]
    for index in range(layers):
        attention = f"text_model.encoder.layers.{index}.self_attn"
        for kind in ("weight", "bias"):
            parts = [tensors[f"{attention}.{name}.{kind}"] for name in ("q_proj", "k_proj", "v_proj")]
            renamed[f"transformer.resblocks.{index}.attn.in_proj_{kind}"] = cat(parts)
    if "text_projection.weight" in tensors:
        renamed["text_projection"] = tensors["text_projection.weight"].T
    return renamed


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
