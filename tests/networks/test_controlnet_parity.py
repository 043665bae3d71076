"""ControlNet against diffusers: every residual, hints, several nets on part of the rows, masks and pooling."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from tiny_networks import FAMILIES, Inputs, encode, make_branch, make_inputs, make_rows, randomise, relative_l2
from torch import Tensor

from bridle.networks import controlnet, unet
from bridle.networks.configs import ControlNetConfig, UNetConfig
from bridle.rows import Branch
from bridle_kernels.ops import Ops, ReferenceOps

TOLERANCE = 1e-5
HINT = {"conditioning_embedding_out_channels": (8, 12, 16, 20)}

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def build(family: str, seed: int, **changes: object) -> tuple[ControlNetModel, dict[str, Tensor], ControlNetConfig]:
    fields = {**FAMILIES[family], **HINT, **changes}
    model = ControlNetModel(**{k: v for k, v in fields.items() if k not in ("up_block_types", "sample_size")})
    weights = dict(randomise(model, seed))
    return model, weights, ControlNetConfig.from_dict(dict(model.config), "controlnet/config.json")


def build_unet(family: str, seed: int) -> tuple[UNet2DConditionModel, dict[str, Tensor], UNetConfig]:
    model = UNet2DConditionModel(**FAMILIES[family])
    weights = dict(randomise(model, seed))
    return model, weights, UNetConfig.from_dict(dict(model.config), "unet/config.json")


def make_image(seed: int, size: tuple[int, int] = (16, 16), rows: int = 3) -> Tensor:
    return torch.rand((rows, 3, 8 * size[0], 8 * size[1]), generator=torch.Generator().manual_seed(seed))


def theirs(model: ControlNetModel, config: ControlNetConfig, inputs: Inputs, image: Tensor) -> list[Tensor]:
    down, mid = model(
        inputs.sample,
        inputs.timesteps,
        encoder_hidden_states=inputs.context,
        controlnet_cond=image,
        added_cond_kwargs=inputs.added(config),
        return_dict=False,
    )
    return [*down, mid]


def mine(weights: dict[str, Tensor], config: ControlNetConfig, inputs: Inputs, image: Tensor) -> tuple[Tensor, ...]:
    ops = ReferenceOps()
    branch = make_branch(weights, config, inputs, controlnet.encode_hint(ops, weights, config, image))
    return controlnet.controlnet(ops, weights, config, branch, inputs.sample)


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_all_residuals(family: str, size: tuple[int, int]) -> None:
    model, weights, config = build(family, 1)
    inputs, image = make_inputs(config, 2, size), make_image(3, size)
    wanted = theirs(model, config, inputs, image)
    got = mine(weights, config, inputs, image)
    assert len(got) == len(wanted) == (10 if family == "sdxl" else 13)
    for index, (mine_, theirs_) in enumerate(zip(got, wanted, strict=True)):
        assert relative_l2(mine_, theirs_) <= TOLERANCE, index


def test_bgr_network_gets_its_channels_reversed() -> None:
    model, weights, config = build("sd1", 4, controlnet_conditioning_channel_order="bgr")
    inputs, image = make_inputs(config, 5), make_image(6)
    wanted = theirs(model, config, inputs, image)
    assert relative_l2(mine(weights, config, inputs, image)[0], wanted[0]) <= TOLERANCE
    assert relative_l2(mine(weights, config, inputs, image.flip(1))[0], wanted[0]) > 1e-3


def test_hint_changes_every_residual() -> None:
    _, weights, config = build("sd1", 7)
    inputs, image = make_inputs(config, 8), make_image(9)
    on, off = mine(weights, config, inputs, image), mine(weights, config, inputs, image * 0)
    assert all(relative_l2(a, b) > 1e-3 for a, b in zip(on, off, strict=True))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_two_nets_on_a_unet(family: str, ops: Ops) -> None:
    unet_model, unet_weights, unet_config = build_unet(family, 10)
    inputs = make_inputs(unet_config, 11)
    scales, branches, down, mid = (0.7, 1.3), [], None, None
    for index, scale in enumerate(scales):
        model, weights, config = build(family, 12 + index)
        image = make_image(14 + index)
        residuals = [scale * r for r in theirs(model, config, inputs, image)]
        down = residuals[:-1] if down is None else [a + b for a, b in zip(down, residuals[:-1], strict=True)]
        mid = residuals[-1] if mid is None else mid + residuals[-1]
        hint = controlnet.encode_hint(ops, weights, config, image)
        branch = make_branch(weights, config, inputs, hint)
        branches.append(replace(branch, scale=scale * branch.scale))
    wanted = unet_model(
        inputs.sample,
        inputs.timesteps,
        encoder_hidden_states=inputs.context,
        added_cond_kwargs=inputs.added(unet_config),
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
        return_dict=False,
    )[0]
    rows = replace(make_rows(unet_weights, unet_config, inputs), branches=tuple(branches))
    got = unet.unet(ops, unet_weights, unet_config, rows, unet.all_residuals(ops, rows))
    assert relative_l2(got, wanted) <= TOLERANCE


def branch_on(rows: tuple[int, ...], weights: dict[str, Tensor], config: ControlNetConfig, inputs: Inputs) -> Branch:
    part = Inputs(*(getattr(inputs, name)[list(rows)] for name in Inputs.__dataclass_fields__))
    time, context = encode(weights, config, part)
    hint = controlnet.encode_hint(ReferenceOps(), weights, config, make_image(20, rows=len(rows)))
    points = len(unet.controlnet_points(config))
    scale = torch.rand((len(rows), points), generator=torch.Generator().manual_seed(21)) + 0.5
    return Branch(weights, config, rows, time, context, hint, scale)


def test_rows_without_the_net_keep_their_bits(ops: Ops) -> None:
    """Guess mode: only some rows have a control, and a mask of zeros is no control."""
    _, unet_weights, unet_config = build_unet("sd1", 22)
    _, weights, config = build("sd1", 23)
    inputs = make_inputs(unet_config, 24)
    rows = make_rows(unet_weights, unet_config, inputs)
    plain = unet.unet(ops, unet_weights, unet_config, rows, {})
    mask = torch.ones(2, 1, 16, 16)
    mask[1] = 0
    branch = replace(branch_on((2, 0), weights, config, inputs), mask=mask)
    on = replace(rows, branches=(branch,))
    got = unet.unet(ops, unet_weights, unet_config, on, unet.all_residuals(ops, on))
    assert torch.equal(got[:2], plain[:2])
    assert relative_l2(got[2], plain[2]) > 1e-3


def test_global_pool_and_scale_per_point(ops: Ops) -> None:
    _, weights, config = build("sd1", 25, global_pool_conditions=True)
    assert config.global_pool
    inputs = make_inputs(config, 26)
    branch = branch_on((0, 1, 2), weights, config, inputs)
    full = controlnet.controlnet(ops, weights, config, branch, inputs.sample)
    residuals = controlnet.branch_residuals(ops, replace(branch, global_pool=True), inputs.sample)
    assert tuple(residuals) == unet.controlnet_points(config)
    for index, (term,) in enumerate(residuals.values()):
        mean, size = (part.mean((2, 3), keepdim=True) for part in (full[index], full[index].abs()))
        assert ((term.values - mean).abs() <= 1e-6 * size).all()
        # Its sum is PyTorch's own: what cancels cancels alike.
        assert type(ops) is not ReferenceOps or torch.allclose(term.values, mean)
        assert torch.equal(term.scale, branch.scale[:, index])


def test_tensor_shapes() -> None:
    for family in ("sd1", "sd2", "sdxl"):
        _, weights, config = build(family, 27)
        assert controlnet.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}
