"""The networks as programs of the C++ core: what is an input, and what is bound for every evaluation."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bridle.backends.reference import Network, Weights
from bridle.networks import controlnet, unet
from bridle.networks.configs import EncoderConfig, UNetConfig
from bridle.networks.layout import encoder_layout, transformers
from bridle.networks.shared_start import SharedStart, points_of_start
from bridle.networks.trunk import attention_sites, context_segments, time_width
from bridle.rows import KV, Branch, ContextPiece, ContextSegment, Residual, Residuals, Rows
from bridle.weights import Component
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.recorder import Program, ProgramFrame, Recorder

Shape = tuple[int, ...]


def record_unet(
    component: Component[UNetConfig],
    packed: PackedWeights,
    dtype: torch.dtype,
    sample: Shape,
    extra: Shape | None,
    start: SharedStart | None,
) -> Program:
    """The U-Net for samples [R, C, h, w] and extra channels [R, Cx, h, w] of rows that share a start."""
    recorder, config = Recorder(), component.config
    rows = Rows(
        sample=recorder.input("sample", sample, dtype),
        time=recorder.input("time", (sample[0], time_width(config)), torch.float32),
        context=_bound_context(recorder, config, dtype),
        extra_channels=None if extra is None else recorder.input("extra_channels", extra, dtype),
        self_rows=tuple(recorder.named(_level(level), (sample[0],), torch.int32) for level in range(config.levels)),
    )
    residuals = {point: (_bound_residual(recorder, point, dtype),) for point in residual_points(config, start)}
    with packed.network(component.tensors) as weights:
        output = unet.unet(NativeOps(recorder, packed), weights, config, rows, residuals, start)
    return recorder.finish([output])


def record_controlnet(
    branch: Branch, packed: PackedWeights, dtype: torch.dtype, sample: Shape, start: SharedStart | None
) -> Program:
    """A branch's network for samples [r, C, h, w] of rows that share a start; its outputs are residuals without any scale.

    The program keeps the branch's weights.
    """
    recorder, config = Recorder(), branch.config
    recorder.keep(branch.weights)
    shadow = replace(
        branch,
        time=recorder.input("time", (sample[0], time_width(config)), torch.float32),
        context=_bound_context(recorder, config, dtype),
        hint=recorder.input("hint", tuple(branch.hint.shape), dtype),
    )
    image = recorder.input("sample", sample, dtype)
    with packed.network(branch.weights) as weights:
        outputs = controlnet.controlnet(NativeOps(recorder, packed), weights, config, shadow, image, start)
    return recorder.finish(outputs)


def record_network(
    name: Hashable, weights: Weights, network: Network, packed: PackedWeights, inputs: Sequence[Tensor]
) -> Program:
    """A network for inputs of the same shapes and dtypes, in that order. The program keeps the weights."""
    recorder = Recorder(packed.values, packed.stored)
    recorder.keep(weights)
    stand_ins = [recorder.input(str(place), tensor.shape, tensor.dtype) for place, tensor in enumerate(inputs)]
    with packed.network(weights, str(name)) as given:
        outputs = network(NativeOps(recorder, packed), given, *stand_ins)
    return recorder.finish(outputs)


def residual_points(config: EncoderConfig, start: SharedStart | None) -> tuple[str, ...]:
    """Every point at which a U-Net adds residuals, but for those of a shared start."""
    numbers = range(len(encoder_layout(config).widths))
    points = ("conv_in", *(f"block.{k}" for k in numbers), *(f"skip.{k}" for k in numbers), "mid")
    shared = () if start is None else points_of_start(config)
    return tuple(point for point in points if point not in shared)


def bind_context(frame: ProgramFrame, config: EncoderConfig, context: Sequence[ContextSegment]) -> None:
    """The segments of every cross-attention of a U-Net or ControlNet, unless they are those of the last evaluation."""
    if list(map(id, frame.context)) == list(map(id, context)):
        return
    for site in range(len(attention_sites(config))):
        frame.bind_segments(_site(site), context_segments(context, site))
    frame.context = tuple(context)


def bind_residuals(frame: ProgramFrame, config: EncoderConfig, residuals: Residuals, start: SharedStart | None) -> None:
    """The residuals of every point of a U-Net."""
    for point in residual_points(config, start):
        frame.bind_residuals(point, residuals.get(point, ()))


def bind_self_rows(frame: ProgramFrame, config: EncoderConfig, rows: Rows) -> None:
    """The rows that the self-attentions of each level read."""
    own = range(rows.sample.shape[0])
    for level in sorted({level for level, _ in transformers(config)}):
        found = None if rows.self_rows is None else rows.self_rows[level]
        frame.bind_rows(_level(level), own if found is None else found.tolist())


def _site(number: int) -> str:
    return f"site.{number}"


def _level(number: int) -> str:
    return f"level.{number}"


def _bound_context(recorder: Recorder, config: EncoderConfig, dtype: torch.dtype) -> tuple[ContextSegment, ...]:
    stand_ins = [recorder.named(_site(site), (1, 1, 1, 1), dtype) for site in range(len(attention_sites(config)))]
    return (ContextSegment((ContextPiece(tuple(KV(tensor, tensor) for tensor in stand_ins)),)),)


def _bound_residual(recorder: Recorder, point: str, dtype: torch.dtype) -> Residual:
    values: Tensor = recorder.named(point, (1, 1, 1, 1), dtype)
    return Residual(values, values)
