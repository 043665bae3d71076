"""CLIP's image encoder against transformers, the image projections against diffusers."""

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterFullImageProjection,
    IPAdapterPlusImageProjection,
)
from PIL import Image
from tiny_networks import randomise, relative_l2
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from bridle.clip_images import clip_pixels
from bridle.networks import clip_vision, image_projection
from bridle.networks.configs import LinearProjectionConfig, MlpProjectionConfig, ResamplerConfig, VisionConfig
from bridle.pictures import read_picture
from bridle_kernels.ops import Ops, ReferenceOps

TOLERANCE = 1e-5
OPS = ReferenceOps()
FIELDS = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 20,
    "patch_size": 6,
    "projection_dim": 12,
}

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image_encoder(activation: str, ops: Ops) -> None:
    fields = CLIPVisionConfig(**FIELDS, hidden_act=activation)
    model = CLIPVisionModelWithProjection(fields)
    weights = dict(randomise(model, 1))
    config = VisionConfig.from_dict(fields.to_dict(), "image_encoder/config.json")
    assert clip_vision.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}
    pixels = normal(2, 3, 20, 20, seed=2)
    wanted = model(pixels, output_hidden_states=True)
    got = clip_vision.image_embeds(ops, weights, config, pixels)
    assert relative_l2(got.squeeze(1), wanted.image_embeds) <= TOLERANCE
    assert relative_l2(got[0], got[1]) > 1e-2
    for skip in range(4):
        hidden = clip_vision.hidden_states(ops, weights, config, pixels, skip)
        assert hidden.shape == (2, config.tokens, config.width)
        assert relative_l2(hidden, wanted.hidden_states[-1 - skip]) <= TOLERANCE


def test_image_encoder_refuses_other_sizes_and_depths() -> None:
    config = VisionConfig.from_dict(FIELDS, "f")
    with pytest.raises(ValueError, match=r"\(1, 3, 20, 19\), wants \[rows, 3, 20, 20\]"):
        clip_vision.image_embeds(OPS, {}, config, torch.zeros(1, 3, 20, 19))
    with pytest.raises(ValueError, match="skip is 4"):
        clip_vision.hidden_states(OPS, {}, config, torch.zeros(1, 3, 20, 20), 4)


@pytest.mark.parametrize("tokens", [1, 4, 5])
def test_linear_projection(tokens: int, ops: Ops) -> None:
    model = ImageProjection(image_embed_dim=12, cross_attention_dim=20, num_image_text_embeds=tokens)
    weights = dict(randomise(model, 3))
    config = LinearProjectionConfig(image_dim=12, context_dim=20, tokens=tokens)
    assert image_projection.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}
    embeds = normal(3, 12, seed=4)
    got = image_projection.project_image(ops, weights, config, embeds[:, None])
    assert relative_l2(got, model(embeds)) <= TOLERANCE


def test_resampler(ops: Ops) -> None:
    model = IPAdapterPlusImageProjection(
        embed_dims=24, output_dims=20, hidden_dims=28, depth=3, heads=2, num_queries=5, ffn_ratio=2
    )
    weights = dict(randomise(model, 5))
    config = ResamplerConfig(image_dim=24, context_dim=20, tokens=5, width=28, mlp_width=56, heads=2, depth=3)
    assert image_projection.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}
    features = normal(3, 10, 24, seed=6)
    got = image_projection.project_image(ops, weights, config, features)
    assert relative_l2(got, model(features)) <= TOLERANCE
    other = image_projection.project_image(ops, weights, config, normal(3, 10, 24, seed=7))
    assert relative_l2(other, got) > 1e-2


def test_mlp_projection(ops: Ops) -> None:
    model = IPAdapterFullImageProjection(image_embed_dim=24, cross_attention_dim=20)
    weights = dict(randomise(model, 8))
    config = MlpProjectionConfig(image_dim=24, context_dim=20)
    assert image_projection.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}
    features = normal(3, 10, 24, seed=9)
    got = image_projection.project_image(ops, weights, config, features)
    assert relative_l2(got, model(features)) <= TOLERANCE


@pytest.mark.parametrize("size", [(224, 224), (300, 97), (41, 333), (8, 8), (225, 224), (1023, 768)])
@pytest.mark.parametrize("side", [224, 32, 33])
def test_pixels_are_those_of_the_image_processor(size: tuple[int, int], side: int) -> None:
    colours = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    processor = CLIPImageProcessorPil(size=side, crop_size=side)
    wanted = processor(Image.fromarray(colours), return_tensors="pt").pixel_values
    pictures = [read_picture("image", value) for value in (colours, colours.astype(np.float32) / 255.0)]
    got = clip_pixels(pictures, side)
    assert got.shape == (2, 3, side, side) and got.dtype == torch.float32
    for picture in got:
        assert torch.allclose(picture, wanted[0], rtol=0, atol=1e-6)
