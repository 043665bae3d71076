"""What Bridle feeds to exported graphs and wants of them, checked when they are loaded (docs/onnx.md)."""

from collections.abc import Mapping
from dataclasses import dataclass

from bridle.backends.onnx_runtime.graph_file import GraphFile, Value
from bridle.errors import ModelLoadError
from bridle.networks.configs import ControlNetConfig, EncoderConfig, UNetConfig
from bridle.networks.layout import encoder_layout
from bridle.networks.trunk import time_width
from bridle.networks.unet import adapter_points, attention_sites, controlnet_points

FLOATS = ("float32", "float16")
Dims = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """An input or output: its types, and its dimensions, where None has to be free."""

    dims: Dims
    types: tuple[str, ...] = FLOATS


Specs = Mapping[str, Spec]


def image(channels: int) -> Spec:
    """[R, channels, height, width]."""
    return Spec((None, channels, None, None))


FEATURES = Spec((None, None, None, None))
TOKENS = Spec((None, None, None))


def time_inputs(config: EncoderConfig) -> Specs:
    """Of `time_table`: time steps, and SDXL's pooled text and sizes."""
    steps = {"timestep": Spec((None,))}
    if config.added_dim is None or config.added_time_dim is None:
        return steps
    pooled = config.added_dim - 6 * config.added_time_dim
    return {**steps, "text_embeds": Spec((None, pooled)), "time_ids": Spec((None, 6))}


def context_input(config: EncoderConfig) -> Specs:
    """Of `cross_kv`: the tokens."""
    return {"encoder_hidden_states": Spec((None, None, config.cross_attention_dim))}


def kv_outputs(config: EncoderConfig) -> Specs:
    """Of `cross_kv`: keys and values [R, L, H, d] of every cross-attention."""
    return {f"{part}.{n}": FEATURES for n in range(len(attention_sites(config))) for part in "kv"}


def denoise_inputs(config: EncoderConfig) -> Specs:
    """Of the U-Net and of ControlNets, besides a ControlNet's hint."""
    kv = {
        f"{part}.{n}": Spec((None, None, site.heads, site.dim))
        for n, site in enumerate(attention_sites(config))
        for part in "kv"
    }
    return {"sample": image(config.in_channels), "time": Spec((None, time_width(config)))} | kv


def optional_inputs(config: UNetConfig) -> Specs:
    """Inputs of the U-Net that a graph may have or not; each then has a default."""
    found = {"segment_bias": FEATURES, "map_columns": Spec((None, None), ("int64",))}
    for n, site in enumerate(attention_sites(config)):
        found[f"encoder_weight.{n}"] = Spec((None, None))
        found[f"encoder_attention_bias.{n}"] = FEATURES
        found[f"segment_weight.{n}"] = TOKENS
        for part in "kv":
            found[f"segment_{part}.{n}"] = Spec((None, None, None, site.heads, site.dim))
    return found | {name: image(_width(config, point)) for name, point in residual_inputs(config).items()}


def residual_inputs(config: EncoderConfig) -> Mapping[str, str]:
    """Names of the U-Net's inputs -> the point at which each is added. The middle has two; all goes into the first."""
    return {
        **dict(zip(residual_outputs(config), controlnet_points(config), strict=True)),
        **{f"down_intrablock_additional_residuals.{k}": point for k, point in enumerate(adapter_points(config))},
    }


def _width(config: EncoderConfig, point: str) -> int:
    """Channels at a point of the encoder."""
    if point == "mid":
        return config.block_out_channels[-1]
    return encoder_layout(config).widths[int(point.partition(".")[2])]


def residual_outputs(config: EncoderConfig) -> tuple[str, ...]:
    """Outputs of a ControlNet, in the order of `controlnet_points`."""
    count = len(controlnet_points(config)) - 1
    return (*(f"down_block_res_samples.{k}" for k in range(count)), "mid_block_res_sample")


def hint_input(config: ControlNetConfig) -> Specs:
    """Of `hint`: the control image."""
    return {"controlnet_cond": image(config.hint_channels)}


def check_graph(graph: GraphFile, inputs: Specs, outputs: Specs, optional: Specs | None = None) -> None:
    """Raises ModelLoadError for inputs and outputs that are missing or not as wanted, and for inputs nobody would feed.

    optional: inputs that may be missing, but have a default where they are there.
    """
    extra = {name: spec for name, spec in (optional or {}).items() if name in graph.inputs}
    for name, spec in {**inputs, **extra}.items():
        _check_value(graph, graph.inputs.get(name), name, spec, "input")
    for name, spec in outputs.items():
        _check_value(graph, graph.outputs.get(name), name, spec, "output")
    for name in graph.inputs:
        if name not in inputs and name not in graph.defaults:
            shown = ascii(name)[:80]
            raise ModelLoadError(graph.label, f"has an input without a default that Bridle does not feed: {shown}")


def _check_value(graph: GraphFile, value: Value | None, name: str, spec: Spec, what: str) -> None:
    if value is None:
        raise ModelLoadError(graph.label, f"has no {what} '{name}'")
    if value.type not in spec.types:
        raise ModelLoadError(graph.label, f"{what} '{name}' is {value.type}, wants {' or '.join(spec.types)}")
    fits = _fits(value.dims, spec.dims) if what == "input" else len(value.dims) == len(spec.dims)
    if not fits:
        got, want = _written(value.dims), _written(spec.dims)
        raise ModelLoadError(graph.label, f"{what} '{name}' has dimensions {got}, wants {want}")


def _fits(got: Dims, want: Dims) -> bool:
    """A fixed number where any is fed does not fit, nor another number than the configuration's."""
    return len(got) == len(want) and all(
        given is None or given == wanted for given, wanted in zip(got, want, strict=True)
    )


def _written(dims: Dims) -> str:
    return "[" + ", ".join("any" if dim is None else str(dim) for dim in dims) + "]"
