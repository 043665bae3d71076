"""Tiny random networks of diffusers, the same weights as Bridle reads them, and inputs for both."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bridle.networks import unet
from bridle.networks.configs import ControlNetConfig, EncoderConfig, UNetConfig
from bridle.rows import Branch, ContextPiece, ContextSegment, Rows
from bridle_kernels.ops import ReferenceOps

TOKENS = 7

SD1 = {
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "sample_size": 16,
}
SD2 = {**SD1, "attention_head_dim": (2, 4, 4, 8), "use_linear_projection": True, "upcast_attention": True}
SDXL = {
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 6),
    "transformer_layers_per_block": (1, 2, 3),
    "cross_attention_dim": 40,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
    "sample_size": 16,
}
POOLED = 24
SMALL = {
    "block_out_channels": (16, 24, 40),
    "layers_per_block": (1, 2, 1),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "cross_attention_dim": 20,
    "attention_head_dim": 2,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
FAMILIES: Mapping[str, dict] = {
    "sd1": SD1,
    "sd2": SD2,
    "sdxl": SDXL,
    "inpaint": {**SD1, "in_channels": 9},
    "depth": {**SD2, "in_channels": 5},
    "small": SMALL,
}


class TappingOps(ReferenceOps):
    """Reference ops that keep a copy of every named point and count calls."""

    def __init__(self) -> None:
        self.points: dict[str, Tensor] = {}

    def name_point(self, x: Tensor, name: str) -> Tensor:
        """x itself, copied aside."""
        self.points[name] = x.clone()
        return x


def randomise(module: nn.Module, seed: int) -> Mapping[str, Tensor]:
    """Fresh weights for every layer, zero-initialised ones included, sized to keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 100
        offset = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        parameter.data = offset + noise * fan_in**-0.5
    return dict(module.eval().state_dict())


def relative_l2(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|, computed in float64."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@dataclass(frozen=True)
class Inputs:
    """Everything a denoising network reads, each row with its own values."""

    sample: Tensor
    timesteps: Tensor
    context: Tensor
    pooled: Tensor
    time_ids: Tensor

    def added(self, config: EncoderConfig) -> dict[str, Tensor] | None:
        """diffusers' `added_cond_kwargs`."""
        return None if config.added_dim is None else {"text_embeds": self.pooled, "time_ids": self.time_ids}


def make_inputs(config: EncoderConfig, seed: int, size: tuple[int, int] = (16, 16), rows: int = 3) -> Inputs:
    """Random inputs; latents include all channels of conv_in."""
    generator = torch.Generator().manual_seed(seed)
    return Inputs(
        torch.randn((rows, config.in_channels, *size), generator=generator),
        torch.tensor([999.0, 401.0, 1.0, 77.5][:rows]),
        torch.randn((rows, TOKENS, config.cross_attention_dim), generator=generator),
        torch.randn((rows, POOLED), generator=generator),
        torch.randint(0, 1025, (rows, 6), generator=generator).float(),
    )


def encode(
    weights: Mapping[str, Tensor], config: EncoderConfig, inputs: Inputs
) -> tuple[Tensor, tuple[ContextSegment, ...]]:
    """Time table rows and context of the inputs."""
    ops = ReferenceOps()
    added = None
    if config.added_dim is not None:
        added = unet.added_embedding(ops, weights, config, inputs.pooled, inputs.time_ids)
    time = unet.time_table(ops, weights, config, inputs.timesteps, added)
    sites = unet.cross_kv(ops, weights, config, inputs.context)
    return time, (ContextSegment((ContextPiece(sites),)),)


def make_rows(weights: Mapping[str, Tensor], config: UNetConfig, inputs: Inputs) -> Rows:
    """Rows of a U-Net; channels beyond the fourth arrive as extra channels."""
    time, context = encode(weights, config, inputs)
    extra = inputs.sample[:, 4:] if config.in_channels > 4 else None
    return Rows(inputs.sample[:, :4], time, context, extra)


def make_branch(weights: Mapping[str, Tensor], config: ControlNetConfig, inputs: Inputs, hint: Tensor) -> Branch:
    """A ControlNet branch over all rows at scale 1."""
    rows = inputs.sample.shape[0]
    time, context = encode(weights, config, inputs)
    points = len(unet.controlnet_points(config))
    return Branch(weights, config, tuple(range(rows)), time, context, hint, torch.ones(rows, points))
