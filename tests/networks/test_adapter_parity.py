"""T2I-Adapter against diffusers."""

import pytest
import torch
from diffusers import T2IAdapter
from tiny_networks import randomise, relative_l2

from bridle.networks import adapters
from bridle.networks.configs import AdapterConfig
from bridle_kernels.ops import Ops, ReferenceOps

TOLERANCE = 1e-5

CASES = {
    "full": ({"adapter_type": "full_adapter", "channels": [8, 12, 16, 16], "in_channels": 1}, (64, 72)),
    "full odd": ({"adapter_type": "full_adapter", "channels": [8, 12, 16, 16]}, (104, 40)),
    "light": (
        {"adapter_type": "light_adapter", "channels": [8, 12, 16], "num_res_blocks": 3, "in_channels": 3},
        (72, 104),
    ),
    "xl": ({"adapter_type": "full_adapter_xl", "channels": [8, 12, 16, 16], "downscale_factor": 16}, (96, 112)),
    "pixel unshuffle 4": ({"adapter_type": "full_adapter", "channels": [8, 12], "downscale_factor": 4}, (24, 28)),
}


@pytest.mark.parametrize("case", CASES)
def test_feature_maps(case: str, ops: Ops) -> None:
    fields, size = CASES[case]
    model = T2IAdapter(**fields)
    weights = dict(randomise(model, 1))
    config = AdapterConfig.from_dict(dict(model.config), "t2i-adapter/config.json")
    assert adapters.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}
    image = torch.rand((2, config.in_channels, *size), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = model(image)
        got = adapters.adapter(ops, weights, config, image)
        blank = adapters.adapter(ops, weights, config, image * 0)
    assert len(got) == len(wanted)
    for mine, theirs, without in zip(got, wanted, blank, strict=True):
        assert relative_l2(mine, theirs) <= TOLERANCE
        assert relative_l2(mine, without) > 1e-3


def test_image_side_must_be_a_multiple_of_the_unshuffle() -> None:
    model = T2IAdapter(channels=[8, 8, 8, 8])
    config = AdapterConfig.from_dict(dict(model.config), "f")
    with pytest.raises(ValueError, match="multiples of 8"):
        adapters.adapter(ReferenceOps(), dict(model.state_dict()), config, torch.zeros(1, 3, 64, 60))
