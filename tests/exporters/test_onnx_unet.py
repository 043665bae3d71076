"""Exported U-Nets against the networks: families, sizes and batches, optional inputs, blind queries, maps."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from onnx_runs import Session, assert_equal, save, variants_of
from tiny_networks import FAMILIES, TOKENS, Inputs, make_inputs, make_rows, randomise
from torch import Tensor

from bridle.networks import unet
from bridle.networks.configs import UNetConfig
from bridle.networks.layout import level_sizes
from bridle.rows import ContextPiece, ContextSegment, Residual, SiteTerms
from bridle.weights import Component
from bridle_exporters.onnx_graphs import networks
from bridle_exporters.onnx_graphs.attention import attention
from bridle_exporters.onnx_graphs.graph import Graph
from bridle_kernels import attention as kernels
from bridle_kernels.attention import Capture, Piece, Segment
from bridle_kernels.ops import ReferenceOps

ALL = ("residuals", "regions", "maps")
SIZES = [((16, 16), 2), ((7, 13), 1), ((10, 24), 3)]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def component(family: str, seed: int) -> Component[UNetConfig]:
    model = UNet2DConditionModel(**FAMILIES[family])
    weights = dict(randomise(model, seed))
    return Component(UNetConfig.from_dict(dict(model.config), "unet/config.json"), weights, "unet")


def whole(folder: Path, part: Component[UNetConfig], features: tuple[str, ...] = ()) -> Session:
    return Session(save(folder, part.tensors, partial(networks.whole_unet, component=part, features=features)))


def feeds(part: Component[UNetConfig], inputs: Inputs) -> dict[str, Tensor]:
    found = {
        "sample": inputs.sample,
        "timestep": inputs.timesteps[0],
        "encoder_hidden_states": inputs.context,
    }
    if part.config.added_dim is not None:
        found |= {"text_embeds": inputs.pooled, "time_ids": inputs.time_ids}
    return found


def one_step(config: UNetConfig, seed: int, size: tuple[int, int] = (16, 16), rows: int = 2) -> Inputs:
    """Inputs whose rows share a time step, as the whole graph wants them."""
    inputs = make_inputs(config, seed, size, rows)
    return replace(inputs, timesteps=inputs.timesteps[1:2].expand(rows) if rows > 1 else inputs.timesteps[:1])


def reference(part: Component[UNetConfig], inputs: Inputs, residuals: object = None, **changes: object) -> Tensor:
    rows = replace(make_rows(part.tensors, part.config, inputs), **changes)
    return unet.unet(ReferenceOps(), part.tensors, part.config, rows, residuals or {})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("features", [(), ALL], ids=["plain", "controls"])
def test_equals_the_network_at_every_size(family: str, features: tuple[str, ...], tmp_path: Path) -> None:
    part = component(family, 1)
    session = whole(tmp_path, part, features)
    for index, (size, rows) in enumerate(SIZES):
        inputs = one_step(part.config, 2 + index, size, rows)
        assert_equal(session(**feeds(part, inputs))["out_sample"], reference(part, inputs))


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
def test_variants_equal_the_network(provider: str, tmp_path: Path) -> None:
    part = component("sd2", 3)
    whole(tmp_path, part, ALL)
    inputs = one_step(part.config, 4, (7, 13), 3)
    got = Session(tmp_path / f"model.{provider}.onnx")(**feeds(part, inputs))["out_sample"]
    assert_equal(got, reference(part, inputs))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.9])
def test_variants_keep_scale_and_causality(scale: float | None, causal: bool, tmp_path: Path) -> None:
    """Which no network asks for together."""
    q, k, v = torch.randn(3, 2, 5, 3, 4, generator=torch.Generator().manual_seed(22))

    def write(graph: Graph) -> None:
        values = [replace(graph.input(name, ("b", "n", 12)), heads=3, width=12) for name in "qkv"]
        graph.output(
            "out", attention(graph, values[0], [Segment((Piece(*values[1:]),))], scale, causal, False), ("b", "n", 12)
        )

    wanted = kernels.attention(q, (Segment((Piece(k, v),)),), scale=scale, causal=causal)
    paths = variants_of(save(tmp_path, {}, write))
    assert len(paths) == 4
    for path in paths:
        assert_equal(Session(path)(q=q.flatten(2), k=k.flatten(2), v=v.flatten(2))["out"], wanted)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "small"])
def test_hoisted_graphs_equal_the_whole(family: str, tmp_path: Path) -> None:
    """time_table and cross_kv, then denoise, with time steps of their own for every row."""
    part = component(family, 5)
    graphs = {
        "time": partial(networks.time_table, component=part),
        "kv": partial(networks.cross_kv, component=part),
        "denoise": partial(networks.denoiser, component=part, features=ALL),
    }
    sessions = {}
    for name, write in graphs.items():
        (tmp_path / name).mkdir()
        sessions[name] = Session(save(tmp_path / name, part.tensors, write))
    for size, rows in (((9, 8), 3), ((12, 7), 1)):
        inputs = make_inputs(part.config, 6, size, rows)
        steps = feeds(part, inputs) | {"timestep": inputs.timesteps}
        time = sessions["time"](**{name: steps[name] for name in sessions["time"].required})
        kv = sessions["kv"](encoder_hidden_states=inputs.context)
        got = sessions["denoise"](sample=inputs.sample, **time, **kv)["out_sample"]
        assert_equal(got, reference(part, inputs))


@pytest.mark.parametrize("family", ["sd1", "sdxl", "small"])
def test_residuals_are_added_where_the_network_adds_them(family: str, tmp_path: Path) -> None:
    part = component(family, 7)
    inputs = one_step(part.config, 8, (12, 10))
    session = whole(tmp_path, part, ("residuals",))
    plain = session(**feeds(part, inputs))["out_sample"]
    points = dict(zip(unet.adapter_points(part.config), range(9), strict=False))
    names = {point: f"down_intrablock_additional_residuals.{i}" for point, i in points.items() if point != "mid"}
    names |= {f"skip.{k}": f"down_block_res_samples.{k}" for k in range(len(unet.controlnet_points(part.config)) - 1)}
    names["mid"] = "mid_block_res_sample"
    assert set(names.values()) | {f"down_intrablock_additional_residuals.{points['mid']}"} == set(session.optional)
    shapes = _point_shapes(part, inputs)
    generator = torch.Generator().manual_seed(9)
    for point, name in names.items():
        values = torch.randn(shapes[point], generator=generator)
        got = session(**feeds(part, inputs), **{name: values})["out_sample"]
        wanted = reference(part, inputs, {point: (Residual(values, torch.ones(1)),)})
        assert_equal(got, wanted)
        assert not torch.allclose(got, plain, atol=1e-3), name


def _point_shapes(part: Component[UNetConfig], inputs: Inputs) -> dict[str, torch.Size]:
    from tiny_networks import TappingOps

    ops = TappingOps()
    unet.unet(ops, part.tensors, part.config, make_rows(part.tensors, part.config, inputs), {})
    found = {name: tensor.shape for name, tensor in ops.points.items()}
    return found | {name.replace("block.", "skip."): shape for name, shape in found.items() if name[:6] == "block."}


def test_regions_equal_weighted_segments(tmp_path: Path) -> None:
    """A weight map of the text, and two further prompts, the second shorter and absent for one row."""
    part = component("sd1", 10)
    inputs = one_step(part.config, 11, (8, 12))
    session = whole(tmp_path, part, ("regions",))
    generator = torch.Generator().manual_seed(12)
    sizes = level_sizes((8, 12), part.config.levels)
    base = [torch.rand(2, h * w, generator=generator) for h, w in sizes]
    maps = [torch.rand(2, 2, h * w, generator=generator) for h, w in sizes]
    tokens = torch.randn(2, 2, TOKENS, part.config.cross_attention_dim, generator=generator)
    visible = torch.tensor([[7, 3], [7, 0]])
    bias = torch.zeros(2, 2, 1, TOKENS).masked_fill(torch.arange(TOKENS) >= visible[..., None, None], -torch.inf)
    sites = unet.attention_sites(part.config)
    segments = []
    extra = {"segment_bias": bias}
    extra |= {f"encoder_weight.{level}": values for level, values in enumerate(base)}
    extra |= {f"segment_weight.{level}": values for level, values in enumerate(maps)}
    for place in range(2):
        kv = unet.cross_kv(ReferenceOps(), part.tensors, part.config, tokens[:, place])
        terms = tuple(SiteTerms(weight=maps[s.level][:, place], bias=bias[:, None, place]) for s in sites)
        segments.append(ContextSegment((ContextPiece(kv),), sites=terms))
    for index in range(len(sites)):
        for name in "kv":
            both = [getattr(segment.pieces[0].sites[index], name) for segment in segments]
            extra[f"segment_{name}.{index}"] = torch.stack(both, 1)
    rows = make_rows(part.tensors, part.config, inputs)
    text = replace(rows.context[0], sites=tuple(SiteTerms(weight=base[s.level]) for s in sites))
    wanted = reference(part, inputs, context=(text, *segments))
    got = session(**feeds(part, inputs), **extra)["out_sample"]
    assert_equal(got, wanted)
    assert not torch.allclose(got, reference(part, inputs), atol=1e-3)


def test_bias_equals_the_networks_and_blind_queries_give_zeros(tmp_path: Path) -> None:
    part = component("sd2", 13)
    inputs = one_step(part.config, 14, (8, 8))
    session = whole(tmp_path, part, ("regions",))
    sites, sizes = unet.attention_sites(part.config), level_sizes((8, 8), part.config.levels)
    generator = torch.Generator().manual_seed(15)
    biases = [torch.randn(2, 1, h * w, TOKENS, generator=generator) for h, w in sizes]
    for bias in biases:
        bias[0, :, : bias.shape[2] // 2] = -torch.inf
    rows = make_rows(part.tensors, part.config, inputs)
    text = replace(rows.context[0], sites=tuple(SiteTerms(bias=biases[s.level]) for s in sites))
    wanted = reference(part, inputs, context=(text,))
    extra = {f"encoder_attention_bias.{level}": bias for level, bias in enumerate(biases)}
    got = session(**feeds(part, inputs), **extra)["out_sample"]
    assert torch.isfinite(got).all()
    assert_equal(got, wanted)
    hidden = {f"encoder_attention_bias.{level}": torch.full((1, 1, 1, 1), -torch.inf) for level in range(len(sizes))}
    no_text = {f"encoder_weight.{level}": torch.zeros(1, 1) for level in range(len(sizes))}
    everywhere = session(**feeds(part, inputs), **hidden)["out_sample"]
    assert torch.equal(everywhere, session(**feeds(part, inputs), **no_text)["out_sample"])
    assert not torch.allclose(everywhere, reference(part, inputs), atol=1e-3)


def test_maps_are_the_networks_columns(tmp_path: Path) -> None:
    part = component("sd1", 16)
    inputs = one_step(part.config, 17, (8, 6))
    session = whole(tmp_path, part, ("maps",))
    columns = torch.tensor([[2, 0, -1], [6, 6, 1]])
    sites, sizes = unet.attention_sites(part.config), level_sizes((8, 6), part.config.levels)
    outs = [torch.zeros(2, sizes[s.level][0] * sizes[s.level][1], 3) for s in sites]
    rows = make_rows(part.tensors, part.config, inputs)
    text = replace(rows.context[0], sites=tuple(SiteTerms(capture=Capture(columns, out)) for out in outs))
    wanted = reference(part, inputs, context=(text,))
    got = session(**feeds(part, inputs), map_columns=columns)
    assert_equal(got["out_sample"], wanted)
    for index, out in enumerate(outs):
        assert_equal(got[f"attention_map.{index}"], out)
        assert out[:, :, :2].sum() > 0
    assert session(**feeds(part, inputs))["attention_map.0"].shape == (2, 48, 0)


def test_nothing_optional_is_required(tmp_path: Path) -> None:
    part = component("sdxl", 18)
    session = whole(tmp_path, part, ALL)
    assert set(session.required) == {"sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"}
    assert session.session.get_inputs()[1].shape == []


def test_half_precision(tmp_path: Path) -> None:
    part = component("sd2", 19)
    inputs = one_step(part.config, 20)
    write = partial(networks.whole_unet, component=part, features=ALL)
    session = Session(save(tmp_path, part.tensors, write, torch.float16))
    given = {name: t if name == "timestep" else t.half() for name, t in feeds(part, inputs).items()}
    got, wanted = session(**given)["out_sample"], reference(part, inputs)
    assert got.dtype == torch.float16
    assert (got.float() - wanted).norm() <= 1e-2 * wanted.norm()
