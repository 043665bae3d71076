"""Names and shapes of the published IP-Adapters, at full size and without any memory."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from bridle.architectures import ARCHITECTURES
from bridle.networks import image_projection
from bridle.networks.configs import LinearProjectionConfig, MlpProjectionConfig, ResamplerConfig, UNetConfig
from bridle.weights import ip_adapter_keys as names

PLUS_SD15 = ResamplerConfig(image_dim=1280, context_dim=768, tokens=16, width=768, mlp_width=3072, heads=12, depth=4)
PLUS_SDXL = ResamplerConfig(image_dim=1280, context_dim=2048, tokens=16, width=1280, mlp_width=5120, heads=20, depth=4)


@pytest.mark.parametrize(("arch", "sites"), [("sd15", 16), ("sd21", 16), ("sdxl", 70)])
def test_numbers_of_the_sites_are_those_of_diffusers_attention_processors(arch: str, sites: int) -> None:
    fields = ARCHITECTURES[arch].unet
    with torch.device("meta"):
        processors = list(UNet2DConditionModel.from_config(dict(fields)).attn_processors)
    keys = names.official_keys(UNetConfig.from_dict(fields, "f"), {}).attention
    assert len(keys) == 2 * sites and len(processors) == 2 * sites
    for part in ("to_k", "to_v"):
        wanted = {
            name.replace("processor", f"{part}.weight"): f"ip_adapter.{index}.{part}_ip.weight"
            for index, name in enumerate(processors)
            if name.endswith("attn2.processor")
        }
        assert wanted.items() <= keys.items() and len(wanted) == sites


@pytest.mark.parametrize(
    ("config", "modules", "wanted"),
    [
        (
            LinearProjectionConfig(image_dim=1024, context_dim=768, tokens=4),
            names.LINEAR,
            {"proj.weight": (3072, 1024), "proj.bias": (3072,), "norm.weight": (768,), "norm.bias": (768,)},
        ),
        (
            MlpProjectionConfig(image_dim=1280, context_dim=768),
            names.MLP,
            {
                "proj.0.weight": (1280, 1280),
                "proj.0.bias": (1280,),
                "proj.2.weight": (768, 1280),
                "proj.2.bias": (768,),
                "proj.3.weight": (768,),
                "proj.3.bias": (768,),
            },
        ),
    ],
)
def test_small_projections(config: object, modules: dict[str, str], wanted: dict[str, tuple[int, ...]]) -> None:
    assert official(config, modules) == {f"image_proj.{key}": shape for key, shape in wanted.items()}


@pytest.mark.parametrize("config", [PLUS_SD15, PLUS_SDXL])
def test_resamplers(config: ResamplerConfig) -> None:
    width, context, wide = config.width, config.context_dim, 4 * config.width
    wanted = {
        "latents": (1, 16, width),
        "proj_in.weight": (width, 1280),
        "proj_in.bias": (width,),
        "proj_out.weight": (context, width),
        "proj_out.bias": (context,),
        "norm_out.weight": (context,),
        "norm_out.bias": (context,),
    }
    layer = {f"{norm}.{part}": (width,) for norm in ("0.norm1", "0.norm2", "1.0") for part in ("weight", "bias")}
    layer |= {"0.to_q.weight": (width, width), "0.to_kv.weight": (2 * width, width), "0.to_out.weight": (width, width)}
    layer |= {"1.1.weight": (wide, width), "1.3.weight": (width, wide)}
    wanted |= {f"layers.{index}.{key}": shape for index in range(4) for key, shape in layer.items()}
    got = official(config, names.resampler_modules(config.depth))
    assert got == {f"image_proj.{key}": shape for key, shape in wanted.items()}


def official(config: object, modules: dict[str, str]) -> dict[str, tuple[int, ...]]:
    unet = UNetConfig.from_dict(ARCHITECTURES["sd15"].unet, "f")
    return names.file_shapes(image_projection.tensor_shapes(config), names.official_keys(unet, modules))


def test_there_and_back() -> None:
    """Also where keys and values share a tensor: the keys come first."""
    unet = UNetConfig.from_dict(ARCHITECTURES["tiny"].unet, "f")
    config = ResamplerConfig(image_dim=6, context_dim=32, tokens=3, width=10, mlp_width=20, heads=2, depth=2)
    shapes = {**image_projection.tensor_shapes(config), **names.attention_shapes(unet)}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for keys in (names.official_keys(unet, names.resampler_modules(2)), names.diffusers_keys(unet, 1)):
        stored = names.to_file(tensors, keys)
        assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == names.file_shapes(shapes, keys)
        back = names.from_file(stored, shapes, keys)
        assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    both = names.to_file(tensors, names.official_keys(unet, names.resampler_modules(2)))
    assert torch.equal(both["image_proj.layers.1.0.to_kv.weight"][:128], tensors["layers.1.attn.to_k.weight"])
