"""The autoencoders against diffusers, whole and tiled."""

import itertools
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from tiny_networks import randomise, relative_l2
from torch import Tensor

from bridle.networks import taesd, vae
from bridle.networks.configs import TaesdConfig, VaeConfig
from bridle.networks.tiles import Tiling, quarter_overlap, run_tiles
from bridle_kernels.ops import Ops, ReferenceOps

TOLERANCE = 1e-5
OPS = ReferenceOps()

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def build(seed: int, **changes: object) -> tuple[AutoencoderKL, dict[str, Tensor], VaeConfig]:
    channels = changes.pop("block_out_channels", (16, 24, 24))
    fields = {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "sample_size": 32,
        **changes,
    }
    model = AutoencoderKL(**fields)
    weights = dict(randomise(model, seed))
    return model, weights, VaeConfig.from_dict(dict(model.config), "vae/config.json")


VARIANTS = {
    "plain": {},
    "four levels": {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1},
    "no quant convolutions": {"use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False, "latent_channels": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_encode_and_decode(variant: str, ops: Ops) -> None:
    model, weights, config = build(1, **VARIANTS[variant])
    generator = torch.Generator().manual_seed(2)
    image = torch.rand((2, 3, 40, 56), generator=generator) * 2 - 1
    mean, log_variance = vae.vae_encode(ops, weights, config, image)
    posterior = model.encode(image).latent_dist
    assert relative_l2(mean, posterior.mean) <= TOLERANCE
    assert relative_l2(log_variance.clamp(-30, 20), posterior.logvar) <= TOLERANCE
    latents = torch.randn((2, config.latent_channels, 5, 7), generator=generator)
    wanted = model.decode(latents, return_dict=False)[0]
    assert relative_l2(vae.vae_decode(ops, weights, config, latents), wanted) <= TOLERANCE
    assert vae.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}


@pytest.mark.parametrize("size", [(96, 72), (64, 128), (36, 40)])
def test_tiled(size: tuple[int, int], ops: Ops) -> None:
    model, weights, config = build(3)
    model.enable_tiling()
    generator = torch.Generator().manual_seed(4)
    image = torch.rand((2, 3, *size), generator=generator) * 2 - 1
    posterior = model.encode(image).latent_dist
    moments = vae.moments_in_tiles(config, image, lambda tile: vae.vae_moments(ops, weights, config, tile))
    mean, _ = vae.split_moments(ops, config, moments)
    assert relative_l2(mean, posterior.mean) <= TOLERANCE
    latents = torch.randn((2, 4, size[0] // 4, size[1] // 4), generator=generator)
    wanted = model.decode(latents, return_dict=False)[0]
    got = vae.decode_in_tiles(config, latents, lambda tile: vae.vae_decode(ops, weights, config, tile))
    assert relative_l2(got, wanted) <= TOLERANCE
    assert relative_l2(got, vae.vae_decode(ops, weights, config, latents)) > 1e-4


def test_one_tile_is_the_whole_image(ops: Ops) -> None:
    _, weights, config = build(5)
    latents = torch.randn((1, 4, 8, 7), generator=torch.Generator().manual_seed(6))
    whole = vae.vae_decode(ops, weights, config, latents)
    tiled = vae.decode_in_tiles(config, latents, lambda tile: vae.vae_decode(ops, weights, config, tile))
    assert torch.equal(tiled, whole)


@pytest.mark.parametrize("size", [(29, 37), (8, 20), (26, 25), (33, 9)])
def test_tiles_leave_no_seam(size: tuple[int, int]) -> None:
    """Neighbouring tiles that differ by 1 everywhere, as group normalisation makes them, cross over in small steps.

    Where four tiles meet, the two ramps multiply: at most twice the step of one. A last tile may be narrower than a ramp.
    """
    tiling = quarter_overlap(8, 32)
    latents = torch.zeros((1, 1, *size))

    def steepest(tiling: Tiling) -> float:
        count = itertools.count()
        columns = len(range(0, size[1], tiling.step))

        def decode(tile: Tensor) -> Tensor:
            row, column = divmod(next(count), columns)
            shade = float((row + column) % 2)
            return tile.repeat_interleave(4, -1).repeat_interleave(4, -2) + shade

        image = run_tiles(latents, tiling, decode)
        assert image.shape == (1, 1, 4 * size[0], 4 * size[1])
        assert float(image.max() - image.min()) == 1.0
        return max(float(image.diff(dim=dim).abs().max()) for dim in (-1, -2))

    narrowest = min(4 * ((side - 1) % tiling.step + 1) for side in size)
    assert steepest(tiling) <= 2 / min(tiling.blend, narrowest) + 1e-6
    assert steepest(replace(tiling, blend=0)) == 1.0


def test_tiles_of_a_local_network_are_the_whole_image() -> None:
    latents = torch.randn((1, 4, 29, 37), generator=torch.Generator().manual_seed(7))

    def decode(tile: Tensor) -> Tensor:
        return tile.repeat_interleave(4, -1).repeat_interleave(4, -2)

    assert torch.allclose(run_tiles(latents, quarter_overlap(8, 32), decode), decode(latents), atol=1e-6)


@pytest.mark.parametrize("stages", [((1, 3, 3, 3), (3, 3, 3, 1)), ((1, 2), (2, 1))])
def test_taesd(stages: tuple[tuple[int, ...], tuple[int, ...]], ops: Ops) -> None:
    widths = (12,) * len(stages[0])
    model = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=stages[0],
        num_decoder_blocks=stages[1],
    )
    weights = dict(randomise(model, 8))
    config = TaesdConfig.from_dict(dict(model.config), "vae/config.json")
    assert taesd.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}
    generator = torch.Generator().manual_seed(9)
    image = torch.rand((2, 3, 40, 24), generator=generator) * 2 - 1
    assert relative_l2(taesd.encode(ops, weights, config, image), model.encode(image).latents) <= TOLERANCE
    latents = torch.randn((2, 4, 5, 6), generator=generator) * 3
    wanted = model.decode(latents).sample
    assert relative_l2(taesd.decode(ops, weights, config, latents), wanted) <= TOLERANCE
