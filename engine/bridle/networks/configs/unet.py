"""Configurations of the denoising U-Net and of ControlNet, whose encoder is a copy of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from bridle.networks.configs.fields import MAX_DEPTH, Fields

_DOWN_TYPES = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP_TYPES = ("CrossAttnUpBlock2D", "UpBlock2D")
_MID_TYPES = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")

_IMPLEMENTED: Mapping[str, tuple[object, ...]] = {
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
}
"""Fields of both networks with the only values implemented."""

_UNET_IMPLEMENTED: Mapping[str, tuple[object, ...]] = {
    **_IMPLEMENTED,
    "center_input_sample": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "dual_cross_attention": (False, None),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """What the U-Net and ControlNet share: the input convolution, time embedding, encoder levels and middle block.

    Per-level tuples run from the latent resolution downwards. heads: number of attention heads. layers: ResBlocks.
    depth: transformer blocks per attention site. added_time_dim and added_dim: widths of the sinusoids and of the whole
    vector of SDXL's second embedding, None where the model has none.
    """

    in_channels: int
    block_out_channels: tuple[int, ...]
    layers: tuple[int, ...]
    attention: tuple[bool, ...]
    mid_attention: bool
    heads: tuple[int, ...]
    depth: tuple[int, ...]
    cross_attention_dim: int
    linear_projection: bool
    upcast_attention: bool
    groups: int
    eps: float
    flip_sin_to_cos: bool
    freq_shift: int
    added_time_dim: int | None
    added_dim: int | None

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.block_out_channels)

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.block_out_channels[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig(EncoderConfig):
    """The denoising U-Net (diffusers `UNet2DConditionModel`).

    up_attention: per decoder level, from the lowest resolution upwards. sample_size: (height, width) of the latents it
    was trained on.
    """

    out_channels: int
    up_attention: tuple[bool, ...]
    sample_size: tuple[int, int]

    @classmethod
    def from_dict(cls, config: Mapping[str, object], file: str) -> Self:
        """Reads a `config.json`. Raises ModelLoadError naming `file` and the field at fault."""
        fields = Fields(config, file)
        fields.require(_UNET_IMPLEMENTED)
        shared = _encoder_fields(fields)
        levels = len(shared["block_out_channels"])
        up = fields.names("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, levels, _UP_TYPES)
        up_attention = tuple(name == "CrossAttnUpBlock2D" for name in up)
        _check_heads(fields, shared["heads"][::-1], shared["block_out_channels"][::-1], up_attention)
        out_channels = fields.integer("out_channels", 4)
        return cls(**shared, out_channels=out_channels, up_attention=up_attention, sample_size=_sample_size(fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetConfig(EncoderConfig):
    """ControlNet (diffusers `ControlNetModel`).

    hint_channels: channels of the control image. hint_widths: channels of the hint encoder's stages, each but the first
    halves the resolution. channel_order: "rgb" or "bgr", order in which the network wants the image's channels.
    global_pool: its residuals are replaced by their spatial mean.
    """

    hint_channels: int
    hint_widths: tuple[int, ...]
    channel_order: str
    global_pool: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, object], file: str) -> Self:
        """Reads a `config.json`. Raises ModelLoadError naming `file` and the field at fault."""
        fields = Fields(config, file)
        fields.require(_IMPLEMENTED)
        return cls(
            **_encoder_fields(fields),
            hint_channels=fields.integer("conditioning_channels", 3),
            hint_widths=fields.integers("conditioning_embedding_out_channels", (16, 32, 96, 256)),
            channel_order=fields.choice("controlnet_conditioning_channel_order", "rgb", ("rgb", "bgr")) or "rgb",
            global_pool=fields.boolean("global_pool_conditions", False),
        )


def _encoder_fields(fields: Fields) -> dict[str, Any]:
    channels = fields.integers("block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    default_types = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    down = fields.names("down_block_types", default_types, levels, _DOWN_TYPES)
    attention = tuple(name == "CrossAttnDownBlock2D" for name in down)
    mid = fields.choice("mid_block_type", "UNetMidBlock2DCrossAttn", _MID_TYPES)
    heads = _heads(fields, levels)
    _check_heads(fields, heads, channels, attention)
    _check_heads(fields, heads[-1:], channels[-1:], (mid == "UNetMidBlock2DCrossAttn",))
    groups = fields.integer("norm_num_groups", 32)
    fields.divides("norm_num_groups", groups, channels)
    return {
        "in_channels": fields.integer("in_channels", 4),
        "block_out_channels": channels,
        "layers": fields.per_level("layers_per_block", 2, levels, MAX_DEPTH),
        "attention": attention,
        "mid_attention": mid == "UNetMidBlock2DCrossAttn",
        "heads": heads,
        "depth": fields.per_level("transformer_layers_per_block", 1, levels, MAX_DEPTH),
        "cross_attention_dim": fields.integer("cross_attention_dim", 1280),
        "linear_projection": fields.boolean("use_linear_projection", False),
        "upcast_attention": fields.boolean("upcast_attention", False),
        "groups": groups,
        "eps": fields.number("norm_eps", 1e-5),
        "flip_sin_to_cos": fields.boolean("flip_sin_to_cos", True),
        "freq_shift": fields.integer("freq_shift", 0, minimum=0, maximum=1),
        **_added_fields(fields),
    }


def _heads(fields: Fields, levels: int) -> tuple[int, ...]:
    """Heads per level. Published configurations keep them in `attention_head_dim`, a misnomer that diffusers preserves."""
    if fields.config.get("num_attention_heads") is not None:
        return fields.per_level("num_attention_heads", 8, levels)
    return fields.per_level("attention_head_dim", 8, levels)


def _check_heads(
    fields: Fields, heads: tuple[int, ...], channels: tuple[int, ...], attention: tuple[bool, ...]
) -> None:
    field = "num_attention_heads" if fields.config.get("num_attention_heads") is not None else "attention_head_dim"
    for count, width, attends in zip(heads, channels, attention, strict=True):
        if attends:
            fields.divides(field, count, (width,))


def _added_fields(fields: Fields) -> dict[str, int | None]:
    if fields.choice("addition_embed_type", None, (None, "text_time")) is None:
        return {"added_time_dim": None, "added_dim": None}
    time_dim = fields.integer("addition_time_embed_dim", 0)
    added_dim = fields.integer("projection_class_embeddings_input_dim", 0)
    if added_dim <= 6 * time_dim:
        fields.refuse(
            "projection_class_embeddings_input_dim", f"more than 6 * addition_time_embed_dim = {6 * time_dim}"
        )
    return {"added_time_dim": time_dim, "added_dim": added_dim}


def _sample_size(fields: Fields) -> tuple[int, int]:
    """Latent (height, width); 64 where the file says nothing, as in diffusers' pipelines."""
    if fields.config.get("sample_size") is None:
        return 64, 64
    height, width = fields.per_level("sample_size", 64, 2)
    return height, width
