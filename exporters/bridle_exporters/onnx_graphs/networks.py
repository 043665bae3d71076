"""The graphs of every network: which inputs they take, and which network functions run over them."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from bridle.networks import adapters, clip_vision, controlnet, image_projection, layers, taesd, text, unet, vae
from bridle.networks.configs import (
    AdapterConfig,
    ControlNetConfig,
    EncoderConfig,
    LinearProjectionConfig,
    TaesdConfig,
    TextConfig,
    UNetConfig,
    VaeConfig,
)
from bridle.networks.layout import encoder_layout
from bridle.networks.trunk import Site, time_width
from bridle.rows import KV, Branch, ContextPiece, ContextSegment, Residual, Residuals, Rows, SiteTerms
from bridle.weights import Component, IPAdapter
from bridle.weights.model import ExportedProjection
from bridle_exporters.onnx_graphs.attention import MapOutput
from bridle_exporters.onnx_graphs.graph import Graph, Value
from bridle_exporters.onnx_graphs.ops import OnnxOps
from bridle_kernels.ops import Ops

FEATURES = ("residuals", "regions", "maps")
SiteKey = Callable[[int, Site], str]
"""How the inputs of a cross-attention are numbered, from its index and place."""


def by_level(index: int, site: Site) -> str:
    """Sites of one resolution share their inputs."""
    return str(site.level)


def by_site(index: int, site: Site) -> str:
    """Every site has inputs of its own."""
    return str(index)


def text_encoder(graph: Graph, component: Component[TextConfig]) -> None:
    """Token ids -> every output that transformers' text encoders have."""
    config, tensors, ops = component.config, component.tensors, _ops(graph)
    ids: Any = graph.input("input_ids", ("batch", "sequence"), torch.int64)
    final = text.clip_text(ops, tensors, config, ids)
    tokens = ("batch", "sequence", config.width)
    if config.projection_dim is not None:
        graph.output("text_embeds", _value(final.pooled), ("batch", config.projection_dim))
    graph.output("last_hidden_state", _value(final.hidden), tokens)
    if config.projection_dim is None:
        graph.output("pooler_output", _value(final.pooled), ("batch", config.width))
    names = [f"text_model.embeddings.{part}_embedding.weight" for part in ("token", "position")]
    graph.output("hidden_states.0", _value(ops.embedding(ids, *(tensors[name] for name in names))), tokens)
    for layer in range(1, config.layers):
        hidden = text.clip_text(ops, tensors, config, ids, skip=config.layers - layer, final_norm=False).hidden
        graph.output(f"hidden_states.{layer}", _value(hidden), tokens)


def final_norm(graph: Graph, component: Component[TextConfig]) -> None:
    """The last normalisation of a text encoder, for hidden states of an earlier layer."""
    sizes = ("batch", "sequence", component.config.width)
    hidden: Any = graph.input("hidden_states", sizes)
    eps = component.config.eps
    normed = layers.layer_norm(_ops(graph), component.tensors, "text_model.final_layer_norm", hidden, eps)
    graph.output("last_hidden_state", _value(normed), sizes)


def vae_encoder(graph: Graph, component: Component[VaeConfig] | Component[TaesdConfig]) -> None:
    """An image in [-1, 1] -> mean and log variance; latents for AutoencoderTiny."""
    config, ops = component.config, _ops(graph)
    image: Any = graph.input("sample", ("batch", config.in_channels, "height", "width"))
    if isinstance(config, TaesdConfig):
        sizes = ("batch", config.latent_channels, "latent_height", "latent_width")
        graph.output("latent_sample", _value(taesd.encode(ops, component.tensors, config, image)), sizes)
        return
    moments = ops.concat(list(vae.vae_encode(ops, component.tensors, config, image)))
    sizes = ("batch", 2 * config.latent_channels, "latent_height", "latent_width")
    graph.output("latent_parameters", _value(moments), sizes)


def vae_decoder(graph: Graph, component: Component[VaeConfig] | Component[TaesdConfig]) -> None:
    """Latents -> an image of about [-1, 1]."""
    config, ops = component.config, _ops(graph)
    latents: Any = graph.input("latent_sample", ("batch", config.latent_channels, "latent_height", "latent_width"))
    if isinstance(config, TaesdConfig):
        image = taesd.decode(ops, component.tensors, config, latents)
    else:
        image = vae.vae_decode(ops, component.tensors, config, latents)
    graph.output("sample", _value(image), ("batch", config.out_channels, "height", "width"))


def time_table(graph: Graph, component: Component[Any]) -> None:
    """Time steps -> the shifts of every residual block."""
    steps = graph.input("timestep", ("batch",), torch.float32)
    table = _time(graph, component, steps)
    graph.output("time", table, ("batch", time_width(component.config)))


def cross_kv(graph: Graph, component: Component[Any]) -> None:
    """Text tokens -> keys and values at every cross-attention."""
    kv_outputs(graph, component.config, component.tensors)


def kv_outputs(graph: Graph, config: EncoderConfig, tensors: Any) -> None:
    """encoder_hidden_states -> k.N and v.N [batch, sequence, heads, d] for every cross-attention N."""
    context: Any = graph.input("encoder_hidden_states", ("batch", "sequence", config.cross_attention_dim))
    pairs = unet.cross_kv(_ops(graph), tensors, config, context)
    for index, (site, pair) in enumerate(zip(unet.attention_sites(config), pairs, strict=True)):
        for part, value in (("k", pair.k), ("v", pair.v)):
            split = graph.op("Reshape", _value(value), graph.constant([0, 0, site.heads, site.dim]))
            graph.output(f"{part}.{index}", split, ("batch", "sequence", site.heads, site.dim))


def whole_unet(graph: Graph, component: Component[UNetConfig], features: Sequence[str]) -> None:
    """The U-Net as diffusers calls it: sample, timestep, encoder_hidden_states (text_embeds, time_ids) -> out_sample."""
    config = component.config
    sample = graph.input("sample", ("batch", config.in_channels, "height", "width"))
    time = _whole_time(graph, component)
    sites = _text_kv(graph, component)
    _unet(graph, component, features, sample, time, sites, by_level)


def denoiser(graph: Graph, component: Component[UNetConfig], features: Sequence[str]) -> None:
    """The U-Net after `time_table` and `cross_kv`: sample, time, k.N, v.N -> out_sample."""
    config = component.config
    sample = graph.input("sample", ("batch", config.in_channels, "height", "width"))
    time = graph.input("time", ("batch", time_width(config)))
    _unet(graph, component, features, sample, time, _given_kv(graph, config), by_site)


def whole_controlnet(graph: Graph, component: Component[ControlNetConfig]) -> None:
    """A ControlNet as diffusers calls it; its outputs have the names of the U-Net's inputs."""
    config = component.config
    sample = graph.input("sample", ("batch", config.in_channels, "height", "width"))
    time = _whole_time(graph, component)
    sites = _text_kv(graph, component)
    image: Any = graph.input("controlnet_cond", ("batch", config.hint_channels, "image_height", "image_width"))
    hint = controlnet.encode_hint(_ops(graph), component.tensors, config, image)
    _controlnet(graph, component, sample, time, sites, hint)


def hint(graph: Graph, component: Component[ControlNetConfig]) -> None:
    """A control image -> what `control_denoiser` adds to its first features, once per image."""
    config = component.config
    image: Any = graph.input("controlnet_cond", ("batch", config.hint_channels, "image_height", "image_width"))
    features = controlnet.encode_hint(_ops(graph), component.tensors, config, image)
    graph.output("hint", _value(features), ("batch", config.block_out_channels[0], "height", "width"))


def control_denoiser(graph: Graph, component: Component[ControlNetConfig]) -> None:
    """A ControlNet after its `time_table`, `cross_kv` and `hint`."""
    config = component.config
    sample = graph.input("sample", ("batch", config.in_channels, "height", "width"))
    time = graph.input("time", ("batch", time_width(config)))
    features: Any = graph.input("hint", ("batch", config.block_out_channels[0], "height", "width"))
    _controlnet(graph, component, sample, time, _given_kv(graph, config), features)


def t2i_adapter(graph: Graph, component: Component[AdapterConfig]) -> None:
    """A control image -> feature maps under the names of the U-Net's inputs."""
    config = component.config
    image: Any = graph.input("control_image", ("batch", config.in_channels, "image_height", "image_width"))
    scale = graph.optional("conditioning_scale", torch.ones(1), ("scales",))
    maps = adapters.adapter(_ops(graph), component.tensors, config, image)
    for index, values in enumerate(maps):
        scaled = graph.op("Mul", _value(values), graph.op("Unsqueeze", scale, graph.constant([1, 2, 3])))
        sizes = ("batch", f"channels_{index}", f"height_{index}", f"width_{index}")
        graph.output(f"down_intrablock_additional_residuals.{index}", scaled, sizes)


def image_encoder(graph: Graph, adapter: IPAdapter) -> None:
    """Pixels of the CLIP image encoder -> the features that the projection reads."""
    encoder = adapter.image_encoder
    side, ops = encoder.config.image_size, _ops(graph)
    pixels: Any = graph.input("pixel_values", ("batch", 3, side, side))
    if isinstance(adapter.projection.config, LinearProjectionConfig):
        features = clip_vision.image_embeds(ops, encoder.tensors, encoder.config, pixels)
        graph.output("image_features", _value(features), ("batch", 1, encoder.config.projection_dim))
        return
    features = clip_vision.hidden_states(ops, encoder.tensors, encoder.config, pixels, skip=1)
    graph.output("image_features", _value(features), ("batch", encoder.config.tokens, encoder.config.width))


def image_tokens(graph: Graph, adapter: IPAdapter) -> None:
    """Features -> tokens of cross-attention."""
    config = adapter.projection.config
    assert not isinstance(config, ExportedProjection)
    features: Any = graph.input("image_features", ("batch", "features", config.image_dim))
    tokens = image_projection.project_image(_ops(graph), adapter.projection.tensors, config, features)
    graph.output("image_tokens", _value(tokens), ("batch", "tokens", config.context_dim))


def _unet(
    graph: Graph,
    component: Component[UNetConfig],
    features: Sequence[str],
    sample: Value,
    time: Value,
    sites: tuple[KV, ...],
    key: SiteKey,
) -> None:
    config = component.config
    context = _context(graph, config, features, sites, key)
    rows = Rows(cast(Tensor, sample), cast(Tensor, time), context)
    residuals = _residual_inputs(graph, config) if "residuals" in features else {}
    out = unet.unet(_ops(graph), component.tensors, config, rows, residuals)
    graph.output("out_sample", _value(out), ("batch", config.out_channels, "height", "width"))
    for name, (value, sizes) in graph.reports.items():
        graph.output(name, value, sizes, torch.float32)


def _context(
    graph: Graph, config: UNetConfig, features: Sequence[str], sites: tuple[KV, ...], key: SiteKey
) -> tuple[ContextSegment, ...]:
    """The text with its optional weights, biases and maps, and the further segments."""
    places = tuple(enumerate(unet.attention_sites(config)))
    text_terms = tuple(_text_terms(graph, features, index, key(index, site)) for index, site in places)
    plain = ContextSegment((ContextPiece(sites),), sites=text_terms)
    if "regions" not in features:
        return (plain,)
    further = tuple(_segment_kv(graph, index, site) for index, site in places)
    terms = tuple(_segment_terms(graph, key(index, site)) for index, site in places)
    return plain, ContextSegment((ContextPiece(further),), sites=terms)


def _text_terms(graph: Graph, features: Sequence[str], index: int, key: str) -> SiteTerms:
    if not {"regions", "maps"} & set(features):
        return SiteTerms()
    weight: Any = graph.constant_value(torch.ones(1, 1))
    bias: Any = graph.constant_value(torch.zeros(1, 1, 1, 1))
    if "regions" in features:
        name = f"encoder_weight.{key}"
        weight = graph.optional(name, torch.ones(1, 1), (f"{name}.batch", f"{name}.positions"))
        name = f"encoder_attention_bias.{key}"
        sizes = tuple(f"{name}.{part}" for part in ("batch", "heads", "positions", "tokens"))
        bias = graph.optional(name, torch.zeros(1, 1, 1, 1), sizes)
    capture: Any = None
    if "maps" in features:
        columns = graph.optional(
            "map_columns", torch.zeros((1, 0), dtype=torch.int64), ("map_columns.batch", "columns")
        )
        capture = MapOutput(f"attention_map.{index}", columns)
    return SiteTerms(weight=weight, bias=bias, capture=capture)


def _segment_kv(graph: Graph, index: int, site: Site) -> KV:
    """P further segments, none by default."""
    empty = torch.zeros(1, 0, 1, site.heads, site.dim)
    sizes = ("segment_batch", "segments", "segment_tokens", site.heads, site.dim)
    found = (graph.optional(f"segment_{part}.{index}", empty, sizes) for part in "kv")
    k, v = (Value(graph, value.name, site.heads, site.heads * site.dim, stacked=True) for value in found)
    return KV(cast(Tensor, k), cast(Tensor, v))


def _segment_terms(graph: Graph, key: str) -> SiteTerms:
    name = f"segment_weight.{key}"
    sizes = tuple(f"{name}.{part}" for part in ("batch", "segments", "positions"))
    weight: Any = graph.optional(name, torch.ones(1, 1, 1), sizes)
    sizes = tuple(f"segment_bias.{part}" for part in ("batch", "segments", "positions", "tokens"))
    bias: Any = graph.optional("segment_bias", torch.zeros(1, 1, 1, 1), sizes)
    return SiteTerms(weight=weight, bias=bias)


def _residual_inputs(graph: Graph, config: UNetConfig) -> Residuals:
    """ControlNet's residuals and adapters' features, 0 by default."""
    widths = encoder_layout(config).widths
    points: dict[str, tuple[Residual, ...]] = {}
    for index, point in enumerate(unet.adapter_points(config)):
        width = config.block_out_channels[min(index, config.levels - 1)]
        points[point] = (_residual(graph, f"down_intrablock_additional_residuals.{index}", width),)
    for index, width in enumerate(widths):
        points[f"skip.{index}"] = (_residual(graph, f"down_block_res_samples.{index}", width),)
    middle = _residual(graph, "mid_block_res_sample", config.block_out_channels[-1])
    points["mid"] = (*points["mid"], middle)
    return points


def _residual(graph: Graph, name: str, width: int) -> Residual:
    sizes = (f"{name}.batch", width, f"{name}.height", f"{name}.width")
    values: Any = graph.optional(name, torch.zeros(1, width, 1, 1), sizes)
    return Residual(values, values)


def _controlnet(
    graph: Graph,
    component: Component[ControlNetConfig],
    sample: Value,
    time: Value,
    sites: tuple[KV, ...],
    features: Any,
) -> None:
    config = component.config
    points = unet.controlnet_points(config)
    scale = graph.optional("conditioning_scale", torch.ones(1, 1), ("scale_batch", "points"))
    every = graph.op("Expand", scale, graph.constant([1, len(points)]))
    branch = Branch(
        component.tensors,
        config,
        (),
        cast(Tensor, time),
        (ContextSegment((ContextPiece(sites),)),),
        features,
        cast(Tensor, scale),
        global_pool=config.global_pool,
    )
    values = controlnet.controlnet(_ops(graph), component.tensors, config, branch, cast(Tensor, sample))
    widths = (*encoder_layout(config).widths, config.block_out_channels[-1])
    names = [*(f"down_block_res_samples.{k}" for k in range(len(points) - 1)), "mid_block_res_sample"]
    for index, (name, width, value) in enumerate(zip(names, widths, values, strict=True)):
        own = _ops(graph).columns(cast(Tensor, every), index, index + 1)
        factor = graph.op("Unsqueeze", _value(own), graph.constant([2, 3]))
        scaled = graph.op("Mul", _value(value), factor)
        graph.output(name, scaled, ("batch", width, f"{name}.height", f"{name}.width"))


def _whole_time(graph: Graph, component: Component[Any]) -> Value:
    step = graph.input("timestep", (), torch.float32)
    return _time(graph, component, graph.op("Unsqueeze", step, graph.constant([0])))


def _time(graph: Graph, component: Component[Any], steps: Value) -> Value:
    config, ops, added = component.config, _ops(graph), None
    if config.added_dim is not None:
        pooled: Any = graph.input("text_embeds", ("batch", config.added_dim - 6 * config.added_time_dim))
        sizes: Any = graph.input("time_ids", ("batch", 6), torch.float32)
        added = unet.added_embedding(ops, component.tensors, config, pooled, sizes)
    return _value(unet.time_table(ops, component.tensors, config, cast(Tensor, steps), added))


def _text_kv(graph: Graph, component: Component[Any]) -> tuple[KV, ...]:
    config = component.config
    context: Any = graph.input("encoder_hidden_states", ("batch", "sequence", config.cross_attention_dim))
    return unet.cross_kv(_ops(graph), component.tensors, config, context)


def _given_kv(graph: Graph, config: EncoderConfig) -> tuple[KV, ...]:
    return tuple(
        KV(*(cast(Tensor, _given(graph, f"{part}.{index}", site)) for part in "kv"))
        for index, site in enumerate(unet.attention_sites(config))
    )


def _given(graph: Graph, name: str, site: Site) -> Value:
    split = graph.input(name, ("batch", "sequence", site.heads, site.dim))
    width = site.heads * site.dim
    flat = graph.op("Reshape", split, graph.constant([0, 0, width]))
    return Value(graph, flat.name, site.heads, width)


def _ops(graph: Graph) -> Ops:
    """Networks take tensors for opaque, so that values of a graph can stand for them."""
    return cast(Ops, OnnxOps(graph))


def _value(tensor: Any) -> Value:
    assert isinstance(tensor, Value)
    return tensor
