"""Configuration files: published ones are read, every bad number and every unimplemented field is refused by name."""

import math

import pytest
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, T2IAdapter, UNet2DConditionModel
from tiny_networks import FAMILIES, SD1, SD2, SDXL
from transformers import CLIPTextConfig

from bridle.errors import ModelLoadError
from bridle.networks.configs import AdapterConfig, ControlNetConfig, TaesdConfig, TextConfig, UNetConfig, VaeConfig

DEFAULTS = {
    UNetConfig: dict(UNet2DConditionModel(**FAMILIES["sd1"]).config),
    ControlNetConfig: dict(ControlNetModel(block_out_channels=(32, 32, 32, 32), attention_head_dim=4).config),
    VaeConfig: dict(AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).config),
    TaesdConfig: dict(AutoencoderTiny().config),
    AdapterConfig: dict(T2IAdapter(channels=[8, 8, 8, 8]).config),
    TextConfig: CLIPTextConfig().to_dict(),
}

UNIMPLEMENTED = {
    UNetConfig: {
        "center_input_sample": True,
        "only_cross_attention": True,
        "mid_block_scale_factor": 1.5,
        "downsample_padding": 0,
        "act_fn": "gelu",
        "encoder_hid_dim": 64,
        "encoder_hid_dim_type": "text_proj",
        "dual_cross_attention": True,
        "class_embed_type": "timestep",
        "addition_embed_type": "text",
        "num_class_embeds": 10,
        "resnet_time_scale_shift": "scale_shift",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 2.0,
        "time_embedding_type": "fourier",
        "time_embedding_dim": 64,
        "time_embedding_act_fn": "silu",
        "timestep_post_act": "silu",
        "time_cond_proj_dim": 256,
        "conv_in_kernel": 5,
        "conv_out_kernel": 1,
        "attention_type": "gated",
        "class_embeddings_concat": True,
        "mid_block_only_cross_attention": True,
        "cross_attention_norm": "layer_norm",
        "reverse_transformer_layers_per_block": [[1]],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "down_block_types": ["AttnDownBlock2D"] * 4,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 4,
    },
    ControlNetConfig: {"encoder_hid_dim": 64, "resnet_time_scale_shift": "scale_shift", "class_embed_type": "identity"},
    VaeConfig: {
        "shift_factor": 0.1,
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
        "act_fn": "relu",
        "down_block_types": ["AttnDownEncoderBlock2D"],
    },
    TaesdConfig: {
        "act_fn": "silu",
        "upsample_fn": "bilinear",
        "upsampling_scaling_factor": 4,
        "latent_shift": 0.0,
        "shift_factor": 0.5,
        "encoder_block_out_channels": [64, 64, 64, 32],
    },
    AdapterConfig: {"adapter_type": "style"},
    TextConfig: {"hidden_act": "relu"},
}

BAD_NUMBERS = {
    UNetConfig: {
        "in_channels": (0, -1, 2**63, 1e308, "4", None, math.nan, True),
        "block_out_channels": ([0], [], [2**63] * 4, [320.0] * 4, 320, None, [32] * 99),
        "layers_per_block": (0, [2, 2], [2, 2, 2, None], 10**9),
        "attention_head_dim": (0, 5, [4, 4, 5, 4], "8"),
        "num_attention_heads": (7, [4, 4]),
        "transformer_layers_per_block": (0, [[1]], 1.5),
        "cross_attention_dim": (None, [32, 32, 32, 32], -3),
        "norm_num_groups": (None, 0, 7),
        "norm_eps": (0, -1e-5, math.nan, math.inf, "1e-5", True),
        "freq_shift": (2, -1, 0.5),
        "use_linear_projection": (1, "yes"),
        "sample_size": (0, [64], "64", [64, 64, 64]),
        "down_block_types": (["DownBlock2D"], "DownBlock2D", [None] * 4, [["DownBlock2D"]] * 4),
    },
    ControlNetConfig: {
        "conditioning_embedding_out_channels": ([], [0], None),
        "controlnet_conditioning_channel_order": ("grb", None, 3, ["rgb"]),
        "conditioning_channels": (0,),
    },
    VaeConfig: {"scaling_factor": (0, math.nan, None), "latent_channels": (0,), "norm_num_groups": (5,)},
    TaesdConfig: {"num_encoder_blocks": ([], [0, 3, 3, 3]), "num_decoder_blocks": ([1],), "scaling_factor": (-1,)},
    AdapterConfig: {"channels": ([], [0, 8, 8, 8]), "downscale_factor": (0, 1000), "num_res_blocks": (0,)},
    TextConfig: {"hidden_size": (0, None), "num_attention_heads": (7,), "vocab_size": (2**40,), "layer_norm_eps": (0,)},
}


def cases(table: dict) -> list:
    return [
        pytest.param(network, field, value, id=f"{network.__name__}-{field}-{index}")
        for network, fields in table.items()
        for field, values in fields.items()
        for index, value in enumerate(values if isinstance(values, tuple) else (values,))
    ]


@pytest.mark.parametrize("network", DEFAULTS)
def test_defaults_of_the_published_class_are_read(network: type) -> None:
    network.from_dict(DEFAULTS[network], "config.json")


@pytest.mark.parametrize(("network", "field", "value"), cases(UNIMPLEMENTED) + cases(BAD_NUMBERS))
def test_bad_field_is_refused_by_name(network: type, field: str, value: object) -> None:
    with pytest.raises(ModelLoadError) as caught:
        network.from_dict({**DEFAULTS[network], field: value}, "unet/config.json")
    assert f"field '{field}'" in str(caught.value)
    assert caught.value.file == "unet/config.json"
    assert len(str(caught.value)) <= 512


def test_fields_that_could_run_code_and_unknown_ones_are_ignored() -> None:
    extra = {"auto_map": {"": "x.y"}, "custom_pipeline": "x", "trust_remote_code": True, "_class_name": ["os.system"]}
    assert UNetConfig.from_dict({**SD1, **extra}, "f") == UNetConfig.from_dict(SD1, "f")


def test_heads_are_read_from_either_field() -> None:
    old = UNetConfig.from_dict(SD2, "f")
    new = UNetConfig.from_dict({**SD2, "attention_head_dim": 3, "num_attention_heads": [2, 4, 4, 8]}, "f")
    assert old == new
    assert old.heads == (2, 4, 4, 8)


def test_sdxl_needs_both_widths_of_its_second_embedding() -> None:
    assert UNetConfig.from_dict(SDXL, "f").added_dim == 72
    for field in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        with pytest.raises(ModelLoadError, match=field):
            UNetConfig.from_dict({k: v for k, v in SDXL.items() if k != field}, "f")


def test_a_light_adapter_has_one_map_more() -> None:
    fields = {"adapter_type": "light_adapter", "channels": [320, 640, 1280], "num_res_blocks": 4}
    assert AdapterConfig.from_dict(fields, "f").channels == (320, 640, 1280)
    with pytest.raises(ModelLoadError, match="channels"):
        AdapterConfig.from_dict({**fields, "channels": [6]}, "f")
    with pytest.raises(ModelLoadError, match="channels"):
        AdapterConfig.from_dict({"adapter_type": "full_adapter_xl", "channels": [8, 8, 8, 16]}, "f")


def test_projection_is_decided_by_the_class_name() -> None:
    fields = {"hidden_size": 32, "num_attention_heads": 4, "projection_dim": 24}
    assert TextConfig.from_dict({**fields, "architectures": ["CLIPTextModel"]}, "f").projection_dim is None
    projecting = {**fields, "architectures": ["CLIPTextModelWithProjection"]}
    assert TextConfig.from_dict(projecting, "f").projection_dim == 24


def test_configs_are_hashable_values() -> None:
    assert len({UNetConfig.from_dict(fields, "f") for fields in FAMILIES.values()}) == len(FAMILIES)
