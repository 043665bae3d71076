"""Configurations of the image autoencoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from bridle.networks.configs.fields import MAX_DEPTH, Fields

_VAE_IMPLEMENTED: Mapping[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None, 0),
    "latents_mean": (None,),
    "latents_std": (None,),
}

_TAESD_IMPLEMENTED: Mapping[str, tuple[object, ...]] = {
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
    "latent_magnitude": (3,),
    "latent_shift": (0.5,),
    "shift_factor": (0, None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """The image autoencoder (diffusers `AutoencoderKL`).

    scaling_factor: latents of the sampler = scaling_factor * latents of the autoencoder. force_upcast: it overflows in
    float16. sample_size: image side it was trained on, which is also the side of its tiles.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers: int
    groups: int
    sample_size: int
    scaling_factor: float
    force_upcast: bool
    quant_conv: bool
    post_quant_conv: bool
    mid_attention: bool

    @property
    def scale(self) -> int:
        """Image side over latent side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_dict(cls, config: Mapping[str, object], file: str) -> Self:
        """Reads a `config.json`. Raises ModelLoadError naming `file` and the field at fault."""
        fields = Fields(config, file)
        fields.require(_VAE_IMPLEMENTED)
        channels = fields.integers("block_out_channels", (64,))
        fields.names("down_block_types", ("DownEncoderBlock2D",), len(channels), ("DownEncoderBlock2D",))
        fields.names("up_block_types", ("UpDecoderBlock2D",), len(channels), ("UpDecoderBlock2D",))
        groups = fields.integer("norm_num_groups", 32)
        fields.divides("norm_num_groups", groups, channels)
        return cls(
            in_channels=fields.integer("in_channels", 3),
            out_channels=fields.integer("out_channels", 3),
            latent_channels=fields.integer("latent_channels", 4),
            block_out_channels=channels,
            layers=fields.integer("layers_per_block", 1, maximum=MAX_DEPTH),
            groups=groups,
            sample_size=max(fields.per_level("sample_size", 32, 2)),
            scaling_factor=fields.number("scaling_factor", 0.18215),
            force_upcast=fields.boolean("force_upcast", True),
            quant_conv=fields.boolean("use_quant_conv", True),
            post_quant_conv=fields.boolean("use_post_quant_conv", True),
            mid_attention=fields.boolean("mid_block_add_attention", True),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaesdConfig:
    """The tiny image autoencoder (diffusers `AutoencoderTiny`). It reads and writes the sampler's own latents.

    encoder_blocks, decoder_blocks: residual blocks per stage, in the order in which the stages run.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    encoder_width: int
    decoder_width: int
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    scaling_factor: float

    @property
    def scale(self) -> int:
        """Image side over latent side."""
        return int(2 ** (len(self.decoder_blocks) - 1))

    @classmethod
    def from_dict(cls, config: Mapping[str, object], file: str) -> Self:
        """Reads a `config.json`. Raises ModelLoadError naming `file` and the field at fault."""
        fields = Fields(config, file)
        fields.require(_TAESD_IMPLEMENTED)
        encoder_blocks = fields.integers("num_encoder_blocks", (1, 3, 3, 3), MAX_DEPTH)
        decoder_blocks = fields.integers("num_decoder_blocks", (3, 3, 3, 1), MAX_DEPTH)
        if len(encoder_blocks) != len(decoder_blocks):
            fields.refuse("num_decoder_blocks", f"{len(encoder_blocks)} stages, as the encoder has")
        return cls(
            in_channels=fields.integer("in_channels", 3),
            out_channels=fields.integer("out_channels", 3),
            latent_channels=fields.integer("latent_channels", 4),
            encoder_width=_equal_widths(fields, "encoder_block_out_channels", len(encoder_blocks)),
            decoder_width=_equal_widths(fields, "decoder_block_out_channels", len(decoder_blocks)),
            encoder_blocks=encoder_blocks,
            decoder_blocks=decoder_blocks,
            scaling_factor=fields.number("scaling_factor", 1.0),
        )


def _equal_widths(fields: Fields, field: str, stages: int) -> int:
    """The one width of all stages: the network has no layer that changes it."""
    widths = fields.integers(field, (64,) * stages)
    if len(widths) != stages or len(set(widths)) != 1:
        fields.refuse(field, f"{stages} equal integers")
    return widths[0]
