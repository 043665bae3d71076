"""The backend `ort`: exported graphs in ONNX Runtime, behind the same sampler."""

import math
import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bridle.backends.onnx_runtime import contract, options, residual_sums
from bridle.backends.onnx_runtime.captured_maps import CapturedMaps
from bridle.backends.onnx_runtime.context_feeds import (
    check_segments,
    lengths,
    refuse,
    segment_feeds,
    stand_ins,
    text_feeds,
)
from bridle.backends.onnx_runtime.open_graphs import Opener, moments_output, pooled_output
from bridle.backends.onnx_runtime.options import OrtOptions
from bridle.backends.onnx_runtime.session import Session, Shape
from bridle.backends.reference import ReferenceBackend, Weights
from bridle.errors import UnsupportedError
from bridle.networks import controlnet
from bridle.networks.configs import AdapterConfig, ControlNetConfig, EncoderConfig, UNetConfig
from bridle.networks.layout import level_sizes
from bridle.networks.text import TextOutput
from bridle.networks.unet import attention_sites, controlnet_points
from bridle.rows import KV, Branch, Primitive, Residual, Residuals, Rows
from bridle.weights import Component, IPAdapter, Model

SERVED = frozenset(
    {
        Primitive.ADDITIVE_EMBEDDING,
        Primitive.STEP_TABLES,
        Primitive.LATENT_BLEND,
        Primitive.INPUT_CHANNELS,
        Primitive.RESIDUALS,
        Primitive.CROSS_SEGMENTS,
        Primitive.ATTENTION_BIAS,
        Primitive.MAP_MIXING,
        Primitive.MAP_CAPTURE,
    }
)
"""Primitives that exported graphs can have inputs for. Of map mixing, V mixed with factors; not the maps of other rows."""

Encoder = Component[UNetConfig] | Component[ControlNetConfig]


class OrtBackend(ReferenceBackend):
    """Serves models whose networks are exported graphs. Thread-safe: it keeps sessions and nothing else."""

    name = "ort"

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        settings: OrtOptions | None = None,
        *,
        alone: bool = False,
    ) -> None:
        super().__init__(model, device, dtype, alone=alone)
        self._opener = Opener(settings or OrtOptions(), device)
        self._lock = threading.Lock()
        self._sessions: dict[tuple[str, int], tuple[Weights, Session]] = {}
        self._unet = self._opener.unet(model.unet, dtype)
        self._stand_ins = stand_ins(self._unet.graph) if self._opener.provider == "tensorrt" else {}
        self._texts = [self._opener.text_encoder(encoder) for encoder in model.text_encoders]
        self._encoder, self._decoder = self._opener.encoder(model.vae), self._opener.decoder(model.vae)
        self._time_table(model.unet)
        self._kv_graph(model.unet.tensors, model.unet.config)

    @staticmethod
    def unavailable() -> str | None:
        """None, or why it cannot be used in this installation."""
        return options.unavailable()

    @staticmethod
    def supports(primitives: frozenset[Primitive]) -> str | None:
        """None, or the reason why `primitives` are not served, whatever the model and the device."""
        missing = sorted(primitive.value for primitive in primitives - SERVED)
        return f"its graphs have no inputs for {', '.join(missing)}" if missing else None

    @staticmethod
    def suits(dtype: torch.dtype) -> bool:
        """Never: where there are weights, "auto" takes a native backend."""
        return False

    def encode_text(self, index: int, token_ids: Tensor, skip: int, final_norm: bool) -> TextOutput:
        """See `ReferenceBackend.encode_text`. Raises UnsupportedError for a layer that the graph does not give."""
        component, session = self.model.text_encoders[index], self._texts[index]
        layer = f"hidden_states.{component.config.layers - skip}" if skip else "last_hidden_state"
        pooled = pooled_output(component.config)
        if layer not in session.graph.outputs or not (skip or final_norm):
            raise UnsupportedError("this text encoder", self.name, f"its graph does not give the layer {-1 - skip}")
        found = session.run_once({"input_ids": token_ids}, (layer, pooled))
        hidden = found[layer]
        if skip and final_norm:
            norm = self._opened("final_norm", component.tensors, lambda: self._opener.final_norm(component))
            hidden = norm.run_once({"hidden_states": hidden}, ("last_hidden_state",))["last_hidden_state"]
        return TextOutput(hidden.to(self.dtype), found[pooled].to(self.dtype))

    def added_embedding(self, component: Encoder, pooled: Tensor, time_ids: Tensor) -> Tensor:
        """[R, P + 6] float32: pooled text and sizes, which the graph of the time table embeds."""
        return torch.cat([pooled.float(), time_ids.float()], dim=1)

    def time_table(self, component: Encoder, timesteps: Tensor, added: Tensor | None) -> Tensor:
        """See `ReferenceBackend.time_table`; added: [1, P + 6] of `added_embedding`."""
        feeds = {"timestep": timesteps}
        if added is not None:
            every = added.expand(len(timesteps), -1)
            feeds |= {"text_embeds": every[:, :-6], "time_ids": every[:, -6:]}
        return self._time_table(component).run_once(feeds, ("time",))["time"]

    def encode_hint(self, component: Component[ControlNetConfig], image: Tensor) -> Tensor:
        """See `ReferenceBackend.encode_hint`."""
        weights, config = component.tensors, component.config
        session = self._opened("hint", weights, lambda: self._opener.hint(weights, config))
        return session.run_once({"controlnet_cond": image}, ("hint",))["hint"].to(self.dtype)

    def adapter_features(self, component: Component[AdapterConfig], image: Tensor) -> tuple[Tensor, ...]:
        """See `ReferenceBackend.adapter_features`: the graph's outputs in their order."""
        session = self._opened("model", component.tensors, lambda: self._opener.adapter(component))
        names = tuple(session.graph.outputs)
        found = session.run_once({"control_image": image}, names)
        return tuple(found[name].to(self.dtype) for name in names)

    def evaluate(self, rows: Rows) -> Tensor:
        """Model outputs [R, C, h, w]. Raises UnsupportedError for what the graphs have no inputs for."""
        self.refuse_unserved(rows)
        graph, config, count = self._unet.graph, self.model.unet.config, rows.sample.shape[0]
        check_segments(graph, rows)
        text, *further = rows.context
        masked = "encoder_attention_bias.0" in graph.inputs
        sample = rows.sample if rows.extra_channels is None else torch.cat([rows.sample, rows.extra_channels], dim=1)
        feeds = self._stand_ins | {"sample": sample, "time": rows.time, **self._residuals(rows)}
        feeds |= text_feeds(text, count, masked) | segment_feeds(further, count)
        shapes: dict[str, Shape] = {"out_sample": (config.out_channels, *rows.sample.shape[-2:])}
        maps = CapturedMaps(text, feeds["k.0"].shape[1])
        if maps.outputs:
            feeds["map_columns"] = torch.tensor([maps.columns], dtype=torch.int64)
            shapes |= self._map_shapes(maps, rows)
        outputs = _run_rows(self._unet, feeds, shapes, (0,) * count if masked else lengths(text, count))
        maps.add(outputs)
        return outputs["out_sample"].to(self.dtype)

    def _map_shapes(self, maps: CapturedMaps, rows: Rows) -> dict[str, Shape]:
        config = self.model.unet.config
        sizes = level_sizes((rows.sample.shape[-2], rows.sample.shape[-1]), config.levels)
        places = [math.prod(sizes[site.level]) for site in attention_sites(config)]
        return {name: (places[site], len(maps.columns)) for site, name in maps.outputs.items()}

    def _residuals(self, rows: Rows) -> dict[str, Tensor]:
        """Inputs of the U-Net's graph for everything that is added at its points. Raises UnsupportedError."""
        found: dict[str, tuple[Residual, ...]] = dict(rows.residuals or {})
        for branch in rows.branches:
            for point, terms in self._branch(branch, rows.sample).items():
                found[point] = found.get(point, ()) + terms
        if not found:
            return {}
        if "mid_block_res_sample" not in self._unet.graph.inputs:
            raise refuse(Primitive.RESIDUALS, "this folder was exported without the feature 'residuals'")
        config = self.model.unet.config
        size = (rows.sample.shape[-2], rows.sample.shape[-1])
        shapes = residual_sums.point_shapes(config, size)
        feeds = {}
        for name, point in contract.residual_inputs(config).items():
            terms = found.pop(point, ())
            if terms:
                feeds[name] = residual_sums.summed(terms, len(rows.sample), shapes[point], self.device)
        if found:
            raise refuse(Primitive.RESIDUALS, f"its graphs have no input at {', '.join(sorted(found))}")
        return feeds

    def _branch(self, branch: Branch, sample: Tensor) -> Residuals:
        """What a ControlNet's graph computes on its rows, by point."""
        weights, config = branch.weights, branch.config
        session = self._opened("denoise", weights, lambda: self._opener.controlnet(weights, config))
        mine, count = controlnet.branch_sample(self.ops, branch, sample), len(branch.rows)
        (text,) = branch.context
        feeds = {"sample": mine, "time": branch.time, "hint": branch.hint, **text_feeds(text, count, masked=False)}
        shapes = residual_sums.point_shapes(config, (sample.shape[-2], sample.shape[-1]))
        names, wanted = contract.residual_outputs(config), {}
        for name, point in zip(names, controlnet_points(config), strict=True):
            channels, *size = shapes[point]
            wanted[name] = (channels, 1, 1) if config.global_pool else (channels, *size)
        outputs = _run_rows(session, feeds, wanted, lengths(text, count))
        return controlnet.named_residuals(self.ops, branch, sample, tuple(outputs[name] for name in names))

    def _cross_kv(self, weights: Weights, config: EncoderConfig, context: Tensor) -> tuple[KV, ...]:
        names = tuple(contract.kv_outputs(config))
        found = self._kv_graph(weights, config).run_once({"encoder_hidden_states": context}, names)
        return tuple(KV(found[f"k.{n}"], found[f"v.{n}"]) for n in range(len(attention_sites(config))))

    def _image_features(self, adapter: IPAdapter, pixels: Tensor) -> Tensor:
        weights, side = adapter.image_encoder.tensors, adapter.image_encoder.config.image_size
        session = self._opened("model", weights, lambda: self._opener.image_encoder(weights, side))
        return session.run_once({"pixel_values": pixels}, ("image_features",))["image_features"]

    def _image_tokens(self, adapter: IPAdapter, features: Tensor) -> Tensor:
        weights, width = adapter.projection.tensors, features.shape[-1]
        session = self._opened("model", weights, lambda: self._opener.image_tokens(weights, width))
        return session.run_once({"image_features": features}, ("image_tokens",))["image_tokens"].to(self.dtype)

    def _encoded(self, image: Tensor) -> Tensor:
        name = moments_output(self.model.vae.config)
        return self._encoder.run_once({"sample": image}, (name,))[name]

    def _decoded(self, latents: Tensor) -> Tensor:
        """In the dtype of the graph."""
        return self._decoder.run_once({"latent_sample": latents}, ("sample",))["sample"]

    def _time_table(self, component: Encoder) -> Session:
        weights, config = component.tensors, component.config
        return self._opened("time_table", weights, lambda: self._opener.time_table(weights, config))

    def _kv_graph(self, weights: Weights, config: EncoderConfig) -> Session:
        return self._opened("cross_kv", weights, lambda: self._opener.cross_kv(weights, config))

    def _opened(self, name: str, weights: Weights, open_graph: Callable[[], Session]) -> Session:
        """The session of a graph of a network, opened when it is first asked for."""
        key = (name, id(weights))
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = (weights, open_graph())
            return self._sessions[key][1]


def _run_rows(
    session: Session, feeds: Mapping[str, Tensor], shapes: Mapping[str, Shape], widths: tuple[int, ...]
) -> dict[str, Tensor]:
    """Outputs [R, *shape] of every row. Rows of other widths run apart: the graph sees all columns it is given.

    feeds: [R or 1, ...]. widths: columns of the text that each row has.
    """
    groups: dict[int, list[int]] = {}
    for row, width in enumerate(widths):
        groups.setdefault(width, []).append(row)
    if len(groups) == 1:
        return session.run(feeds, {name: (len(widths), *shape) for name, shape in shapes.items()})
    parts = [_run_group(session, feeds, rows, width, len(widths), shapes) for width, rows in groups.items()]
    order = torch.tensor([row for rows in groups.values() for row in rows]).argsort()
    return {name: torch.cat([part[name] for part in parts])[order.to(parts[0][name].device)] for name in shapes}


def _run_group(
    session: Session, feeds: Mapping[str, Tensor], rows: list[int], width: int, count: int, shapes: Mapping[str, Shape]
) -> dict[str, Tensor]:
    mine = {name: values[rows] if values.shape[0] == count else values for name, values in feeds.items()}
    cut = {name: values[:, :width] if name.startswith(("k.", "v.")) else values for name, values in mine.items()}
    return session.run(cut, {name: (len(rows), *shape) for name, shape in shapes.items()})
