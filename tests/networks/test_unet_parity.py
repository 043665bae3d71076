"""The U-Net against diffusers: outputs, every block, odd sizes, extra channels, residual points, row order."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_networks import FAMILIES, Inputs, TappingOps, make_inputs, make_rows, randomise, relative_l2
from torch import Tensor, nn

from bridle.errors import UnsupportedError
from bridle.networks import unet
from bridle.networks.configs import UNetConfig
from bridle.networks.layout import level_sizes
from bridle.rows import ContextPiece, ContextSegment, Residual, SiteTerms
from bridle_kernels import _core
from bridle_kernels.executor import Immediate
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.ops import Ops, ReferenceOps
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.resample import resize_mask

TOLERANCE = 1e-5

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def build(family: str, seed: int) -> tuple[UNet2DConditionModel, dict[str, Tensor], UNetConfig]:
    model = UNet2DConditionModel(**FAMILIES[family])
    weights = dict(randomise(model, seed))
    return model, weights, UNetConfig.from_dict(dict(model.config), "unet/config.json")


def theirs(model: UNet2DConditionModel, config: UNetConfig, inputs: Inputs, **extra: object) -> Tensor:
    return model(
        inputs.sample,
        inputs.timesteps,
        encoder_hidden_states=inputs.context,
        added_cond_kwargs=inputs.added(config),
        return_dict=False,
        **extra,
    )[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_output(family: str, ops: Ops) -> None:
    model, weights, config = build(family, 1)
    inputs = make_inputs(config, 2)
    got = unet.unet(ops, weights, config, make_rows(weights, config, inputs), {})
    assert relative_l2(got, theirs(model, config, inputs)) <= TOLERANCE


@pytest.mark.parametrize("size", [(24, 20), (18, 13), (7, 33), (1, 5)])
def test_odd_latent_sizes(size: tuple[int, int], ops: Ops) -> None:
    """Beside float64: norms of five positions enlarge roundings, ours and PyTorch's."""
    model, weights, config = build("sd1", 3)
    inputs = make_inputs(config, 4, size)
    got = unet.unet(ops, weights, config, make_rows(weights, config, inputs), {})
    exact = replace(inputs, sample=inputs.sample.double(), context=inputs.context.double())
    assert relative_l2(got, theirs(copy.deepcopy(model).double(), config, exact)) <= TOLERANCE


def hook_blocks(model: UNet2DConditionModel) -> dict[str, Tensor]:
    """Names as Bridle gives them -> tensor, filled while the model runs."""
    points: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            tensor = output if isinstance(output, Tensor) else output[0]
            points[name] = tensor.clone()

        return hook

    model.conv_in.register_forward_hook(keep("block.0"))
    model.mid_block.register_forward_hook(keep("mid"))
    encoder = decoder = 0
    for block in model.down_blocks:
        for layer, _ in enumerate(block.resnets):
            encoder += 1
            last_module(block, layer).register_forward_hook(keep(f"block.{encoder}"))
        if block.downsamplers:
            encoder += 1
            block.downsamplers[0].register_forward_hook(keep(f"block.{encoder}"))
    for block in model.up_blocks:
        for layer, _ in enumerate(block.resnets):
            resampled = block.upsamplers and layer == len(block.resnets) - 1
            module = block.upsamplers[0] if resampled else last_module(block, layer)
            module.register_forward_hook(keep(f"decoder.{decoder}"))
            decoder += 1
    return points


def last_module(block: nn.Module, layer: int) -> nn.Module:
    return block.attentions[layer] if hasattr(block, "attentions") else block.resnets[layer]


@pytest.mark.parametrize("family", ["sd1", "sdxl", "small"])
def test_every_block(family: str) -> None:
    model, weights, config = build(family, 5)
    inputs = make_inputs(config, 6)
    wanted = hook_blocks(model)
    theirs(model, config, inputs)
    ops = TappingOps()
    unet.unet(ops, weights, config, make_rows(weights, config, inputs), {})
    assert ops.points.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert relative_l2(ops.points[name], tensor) <= TOLERANCE, name


@pytest.mark.parametrize("family", ["sd1", "sdxl", "small"])
def test_residual_points(family: str, ops: Ops) -> None:
    """Adapter maps on the running tensor and the skip copy, ControlNet residuals on the skip copy and the middle."""
    model, weights, config = build(family, 7)
    inputs = make_inputs(config, 8)
    points = hook_blocks(model)
    plain = theirs(model, config, inputs)
    generator = torch.Generator().manual_seed(9)
    maps = {p: torch.randn(points[p].shape, generator=generator) for p in unet.adapter_points(config)}
    if family != "sdxl":
        del maps["mid"]
    skips = [torch.randn(points[f"block.{k}"].shape, generator=generator) for k in range(skip_count(config))]
    mid = torch.randn(points["mid"].shape, generator=generator)
    wanted = theirs(
        model,
        config,
        inputs,
        down_intrablock_additional_residuals=[m.clone() for m in maps.values()],
        down_block_additional_residuals=skips,
        mid_block_additional_residual=mid,
    )
    one = torch.ones(3)
    residuals = {p: (Residual(m, one),) for p, m in maps.items()}
    residuals |= {f"skip.{k}": (Residual(r / 2, 2 * one),) for k, r in enumerate(skips)}
    residuals["mid"] = (*residuals.get("mid", ()), Residual(mid, one))
    got = unet.unet(ops, weights, config, make_rows(weights, config, inputs), residuals)
    assert relative_l2(got, wanted) <= TOLERANCE
    assert relative_l2(got, plain) > 1e-2


def skip_count(config: UNetConfig) -> int:
    return len(unet.controlnet_points(config)) - 1


def test_conv_in_point_is_the_first_block(ops: Ops) -> None:
    _, weights, config = build("sd1", 10)
    inputs = make_inputs(config, 11)
    rows = make_rows(weights, config, inputs)
    term = (Residual(torch.randn(3, 32, 16, 16, generator=torch.Generator().manual_seed(12)), torch.ones(3)),)
    at_conv_in = unet.unet(ops, weights, config, rows, {"conv_in": term})
    at_block = unet.unet(ops, weights, config, rows, {"block.0": term})
    assert torch.equal(at_conv_in, at_block)
    assert not torch.equal(at_conv_in, unet.unet(ops, weights, config, rows, {}))


def test_rows_permuted_in_rows_permuted_out(ops: Ops) -> None:
    _, weights, config = build("sd1", 13)
    inputs = make_inputs(config, 14)
    order = torch.tensor([2, 0, 1])
    permuted = Inputs(*(getattr(inputs, name)[order] for name in Inputs.__dataclass_fields__))
    straight = unet.unet(ops, weights, config, make_rows(weights, config, inputs), {})
    got = unet.unet(ops, weights, config, make_rows(weights, config, permuted), {})
    assert relative_l2(got, straight[order]) <= 1e-6
    assert relative_l2(got, straight) > 1e-2


def test_segments_shared_rows_lengths_and_weight_maps(ops: Ops) -> None:
    """Two half-weight segments over shared, shortened text equal one plain segment over the text it stands for."""
    _, weights, config = build("sd1", 15)
    inputs = make_inputs(config, 16)
    text = inputs.context.clone()
    text[2] = text[0]
    plain = make_rows(weights, config, replace(inputs, context=text))
    padded = torch.cat([inputs.context[:2], torch.full((2, 3, 32), torch.nan)], 1)
    sites = unet.cross_kv(ops, weights, config, padded)
    piece = ContextPiece(sites, torch.full((3,), text.shape[1], dtype=torch.int32))
    reads = torch.tensor([0, 1, 0], dtype=torch.int32)
    left = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(17))
    sizes = level_sizes((16, 16), config.levels)

    def segment(weight: torch.Tensor | float) -> ContextSegment:
        """The shared text, at every site with its weight."""
        maps = [weight if isinstance(weight, float) else resize_mask(weight, size).flatten(1) for size in sizes]
        terms = tuple(SiteTerms(weight=maps[site.level]) for site in unet.attention_sites(config))
        return ContextSegment((piece,), reads, reads, sites=terms)

    context = (segment(left), segment(1 - left))
    wanted = unet.unet(ops, weights, config, plain, {})
    got = unet.unet(ops, weights, config, replace(plain, context=context), {})
    assert relative_l2(got, wanted) <= TOLERANCE
    lopsided = (segment(left), segment(0.1))
    assert relative_l2(unet.unet(ops, weights, config, replace(plain, context=lopsided), {}), wanted) > 1e-3


def test_unserved_primitive_is_refused_by_name() -> None:
    _, weights, config = build("sd1", 18)
    rows = replace(make_rows(weights, config, make_inputs(config, 19)), weight_deltas=object())
    with pytest.raises(UnsupportedError, match="P14 weight deltas"):
        unet.unet(ReferenceOps(), weights, config, rows, {})


@pytest.mark.parametrize("family", ["sd1", "sdxl", "small"])
def test_attention_sites_are_diffusers_modules(family: str) -> None:
    model, _, config = build(family, 20)
    modules = dict(model.named_modules())
    sites = unet.attention_sites(config)
    assert {site.name for site in sites} == {name for name in modules if name.endswith("attn2")}
    for site in sites:
        assert (modules[site.name].heads, modules[site.name].inner_dim) == (site.heads, site.heads * site.dim)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensor_shapes(family: str) -> None:
    _, weights, config = build(family, 21)
    assert unet.tensor_shapes(config) == {name: tuple(tensor.shape) for name, tensor in weights.items()}


def test_gradient_reaches_the_latent() -> None:
    model, weights, config = build("sd1", 22)
    inputs = make_inputs(config, 23, rows=1)
    rows = make_rows(weights, config, inputs)
    frozen = {name: tensor.detach() for name, tensor in weights.items()}
    with torch.enable_grad():
        mine = inputs.sample.clone().requires_grad_()
        unet.unet(ReferenceOps(), frozen, config, replace(rows, sample=mine), {}).square().sum().backward()
        other = inputs.sample.clone().requires_grad_()
        theirs(model, config, replace(inputs, sample=other)).square().sum().backward()
    assert relative_l2(mine.grad, other.grad) <= 1e-4


def test_no_layer_is_zero_in_these_comparisons() -> None:
    _, weights, _ = build("sd1", 24)
    assert all(bool(tensor.any()) for tensor in weights.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_in_its_dtype(dtype: torch.dtype) -> None:
    model, weights, config = build("sd2", 25)
    inputs = make_inputs(config, 26)
    half = {name: tensor.to(dtype) for name, tensor in weights.items()}
    halved = replace(inputs, sample=inputs.sample.to(dtype), context=inputs.context.to(dtype))
    rows = make_rows(half, config, halved)
    residual = Residual(torch.zeros(1, 1, 1, 1).expand(1, 32, 16, 16), torch.ones(1))
    got = unet.unet(ReferenceOps(), half, config, rows, {"block.0": (residual,)})
    assert got.dtype == rows.time.dtype == dtype
    assert relative_l2(got, theirs(model, config, inputs)) <= (5e-2 if dtype == torch.bfloat16 else 1e-2)


def test_full_size_sd15() -> None:
    """512x512, by the reference and by the C++ core."""
    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768)
    weights = dict(randomise(model.to_empty(device="cpu"), 27))
    config = UNetConfig.from_dict(dict(model.config), "unet/config.json")
    inputs = make_inputs(config, 28, (64, 64), rows=2)
    wanted, rows = theirs(model, config, inputs), make_rows(weights, config, inputs)
    for ops in (ReferenceOps(), NativeOps(Immediate(_core.ThreadPool(1)), PackedWeights())):
        assert relative_l2(unet.unet(ops, weights, config, rows, {}), wanted) <= TOLERANCE
