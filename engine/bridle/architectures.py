"""Configurations of published architectures, and tiny ones of the same form, as their `config.json` files say them."""

from collections.abc import Mapping
from dataclasses import dataclass

Config = Mapping[str, object]

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_UP_CROSS, _UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"
_SCHEDULER: Config = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The configurations of one model family. text_encoders: one per encoder, in order. image_encoder: of IP-Adapters."""

    pipeline: str
    unet: Config
    vae: Config
    text_encoders: tuple[Config, ...]
    scheduler: Config
    image_encoder: Config


def _unet(down: tuple[str, ...], up: tuple[str, ...], **fields: object) -> Config:
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "down_block_types": list(down),
        "up_block_types": list(up),
        **fields,
    }


def _vae(channels: tuple[int, ...], scaling_factor: float, sample_size: int) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "scaling_factor": scaling_factor,
        "sample_size": sample_size,
    }


def _text(width: int, layers: int, heads: int, projection: int | None = None, act: str = "quick_gelu") -> Config:
    return {
        "architectures": ["CLIPTextModel" if projection is None else "CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": act,
        "max_position_embeddings": 77,
        "vocab_size": 49408 if width >= 512 else 1024,
        "projection_dim": projection or width,
    }


def _vision(width: int, layers: int, heads: int, projection: int, image_size: int, patch_size: int) -> Config:
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "image_size": image_size,
        "patch_size": patch_size,
        "projection_dim": projection,
    }


_VIT_H, _TINY_VIT = _vision(1280, 32, 16, 1024, 224, 14), _vision(32, 3, 4, 24, 32, 8)
_SD_DOWN, _SD_UP = (_CROSS,) * 3 + (_PLAIN,), (_UP_PLAIN,) + (_UP_CROSS,) * 3
_XL_DOWN, _XL_UP = (_PLAIN, _CROSS, _CROSS), (_UP_CROSS, _UP_CROSS, _UP_PLAIN)
_FULL_VAE, _TINY_VAE = (128, 256, 512, 512), (32, 32, 64, 64)
_FULL, _TINY = [320, 640, 1280, 1280], [32, 64, 64, 64]

ARCHITECTURES: Mapping[str, Architecture] = {
    "sd15": Architecture(
        "StableDiffusionPipeline",
        _unet(
            _SD_DOWN, _SD_UP, block_out_channels=_FULL, cross_attention_dim=768, attention_head_dim=8, sample_size=64
        ),
        _vae(_FULL_VAE, 0.18215, 512),
        (_text(768, 12, 12),),
        _SCHEDULER,
        _VIT_H,
    ),
    "sd21": Architecture(
        "StableDiffusionPipeline",
        _unet(
            _SD_DOWN,
            _SD_UP,
            block_out_channels=_FULL,
            cross_attention_dim=1024,
            attention_head_dim=[5, 10, 20, 20],
            use_linear_projection=True,
            upcast_attention=True,
            sample_size=96,
        ),
        _vae(_FULL_VAE, 0.18215, 768),
        (_text(1024, 23, 16, act="gelu"),),
        {**_SCHEDULER, "prediction_type": "v_prediction"},
        _VIT_H,
    ),
    "sdxl": Architecture(
        "StableDiffusionXLPipeline",
        _unet(
            _XL_DOWN,
            _XL_UP,
            block_out_channels=_FULL[:3],
            cross_attention_dim=2048,
            attention_head_dim=[5, 10, 20],
            transformer_layers_per_block=[1, 2, 10],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            sample_size=128,
        ),
        _vae(_FULL_VAE, 0.13025, 1024),
        (_text(768, 12, 12), _text(1280, 32, 20, projection=1280, act="gelu")),
        {**_SCHEDULER, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
        _VIT_H,
    ),
    "tiny": Architecture(
        "StableDiffusionPipeline",
        _unet(_SD_DOWN, _SD_UP, block_out_channels=_TINY, cross_attention_dim=32, attention_head_dim=4, sample_size=16),
        _vae(_TINY_VAE, 0.18215, 128),
        (_text(32, 3, 4),),
        _SCHEDULER,
        _TINY_VIT,
    ),
    "tiny-xl": Architecture(
        "StableDiffusionXLPipeline",
        _unet(
            _XL_DOWN,
            _XL_UP,
            block_out_channels=[32, 64, 96],
            cross_attention_dim=64,
            attention_head_dim=[2, 4, 6],
            transformer_layers_per_block=[1, 2, 3],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
            sample_size=16,
        ),
        _vae(_TINY_VAE, 0.13025, 128),
        (_text(32, 3, 4), _text(32, 4, 4, projection=24, act="gelu")),
        {**_SCHEDULER, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
        _TINY_VIT,
    ),
}
"""By the names that `bridle new-model --arch` takes."""


def controlnet_config(unet: Config) -> Config:
    """The ControlNet of a U-Net: a copy of its encoder with the published hint encoder."""
    dropped = ("_class_name", "out_channels", "up_block_types", "sample_size")
    shared = {name: value for name, value in unet.items() if name not in dropped}
    return {
        "_class_name": "ControlNetModel",
        **shared,
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "controlnet_conditioning_channel_order": "rgb",
    }


def adapter_config(unet: Config) -> Config:
    """The T2I-Adapter of a U-Net, for RGB control images."""
    channels = unet["block_out_channels"]
    assert isinstance(channels, list)
    xl = len(channels) == 3
    return {
        "_class_name": "T2IAdapter",
        "adapter_type": "full_adapter_xl" if xl else "full_adapter",
        "in_channels": 3,
        "channels": [*channels, channels[-1]] if xl else channels,
        "num_res_blocks": 2,
        "downscale_factor": 16 if xl else 8,
    }
