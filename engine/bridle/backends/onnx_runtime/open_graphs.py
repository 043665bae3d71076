"""The graphs of a model as sessions, each checked against its configuration first."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bridle.backends.onnx_runtime import contract
from bridle.backends.onnx_runtime.contract import FEATURES, TOKENS, Spec, Specs, check_graph, image
from bridle.backends.onnx_runtime.graph_file import GraphFile, read_graph
from bridle.backends.onnx_runtime.mapped_weights import MappedWeights
from bridle.backends.onnx_runtime.options import OrtOptions
from bridle.backends.onnx_runtime.session import Session
from bridle.errors import ModelLoadError, RequestError
from bridle.networks.configs import (
    AdapterConfig,
    ControlNetConfig,
    EncoderConfig,
    TaesdConfig,
    TextConfig,
    UNetConfig,
    VaeConfig,
)
from bridle.networks.unet import attention_sites
from bridle.weights import Component
from bridle.weights.exported import ExportedWeights
from bridle.weights.folder import confined

Weights = Mapping[str, Tensor]


class Opener:
    """Opens graphs on one device with one set of options; graphs of one folder share their weights. provider: our name.

    Every method raises ModelLoadError for a graph that is not as docs/onnx.md says.
    """

    def __init__(self, options: OrtOptions, device: torch.device) -> None:
        self._options = options
        self._device = device
        self.provider = options.provider_on(device)
        self._weights = MappedWeights()

    def unet(self, component: Component[UNetConfig], dtype: torch.dtype) -> Session:
        """One evaluation of the U-Net. Raises RequestError where the graph has another dtype."""
        graph, config = self._read(component.tensors, "denoise"), component.config
        if not attention_sites(config):
            raise ModelLoadError(graph.label, "has no cross-attention")
        optional = contract.optional_inputs(config)
        check_graph(graph, contract.denoise_inputs(config), {"out_sample": FEATURES}, optional)
        own, wanted = graph.inputs["sample"].type, str(dtype).removeprefix("torch.")
        if own != wanted:
            raise RequestError("dtype", wanted, f"'{own}', in which this folder was exported")
        return self._session(graph)

    def controlnet(self, weights: Weights, config: ControlNetConfig) -> Session:
        """One evaluation of a ControlNet."""
        inputs = {**contract.denoise_inputs(config), "hint": image(config.block_out_channels[0])}
        return self._checked(weights, "denoise", inputs, dict.fromkeys(contract.residual_outputs(config), FEATURES))

    def hint(self, weights: Weights, config: ControlNetConfig) -> Session:
        """The encoder of a ControlNet's image."""
        return self._checked(weights, "hint", contract.hint_input(config), {"hint": FEATURES})

    def time_table(self, weights: Weights, config: EncoderConfig) -> Session:
        """Time steps -> shifts of the residual blocks."""
        return self._checked(weights, "time_table", contract.time_inputs(config), {"time": Spec((None, None))})

    def cross_kv(self, weights: Weights, config: EncoderConfig) -> Session:
        """Tokens -> keys and values."""
        return self._checked(weights, "cross_kv", contract.context_input(config), contract.kv_outputs(config))

    def adapter(self, component: Component[AdapterConfig]) -> Session:
        """A T2I-Adapter."""
        inputs = {"control_image": image(component.config.in_channels)}
        return self._checked(component.tensors, "model", inputs, {"down_intrablock_additional_residuals.0": FEATURES})

    def text_encoder(self, component: Component[TextConfig]) -> Session:
        """A text encoder."""
        outputs = {pooled_output(component.config): Spec((None, None)), "last_hidden_state": TOKENS}
        ids = {"input_ids": Spec((None, None), ("int64", "int32"))}
        return self._checked(component.tensors, "model", ids, outputs)

    def final_norm(self, component: Component[TextConfig]) -> Session:
        """The last normalisation of a text encoder."""
        inputs = {"hidden_states": Spec((None, None, component.config.width))}
        return self._checked(component.tensors, "final_norm", inputs, {"last_hidden_state": TOKENS})

    def decoder(self, component: Component[VaeConfig] | Component[TaesdConfig]) -> Session:
        """The autoencoder's decoder."""
        inputs = {"latent_sample": image(component.config.latent_channels)}
        return self._checked(component.tensors, "model", inputs, {"sample": FEATURES})

    def encoder(self, component: Component[VaeConfig] | Component[TaesdConfig]) -> Session:
        """The autoencoder's encoder, whose folder stands beside the decoder's."""
        folder = _exported(component.tensors).folder.parent
        weights = ExportedWeights(confined(folder, "vae_encoder"), "vae_encoder")
        return self._checked(weights, "model", {"sample": image(3)}, {moments_output(component.config): FEATURES})

    def image_encoder(self, weights: Weights, side: int) -> Session:
        """CLIP's image encoder, of pictures of `side` pixels."""
        return self._checked(
            weights, "model", {"pixel_values": Spec((None, 3, side, side))}, {"image_features": TOKENS}
        )

    def image_tokens(self, weights: Weights, width: int) -> Session:
        """Features of the image encoder, `width` wide -> tokens."""
        return self._checked(weights, "model", {"image_features": Spec((None, None, width))}, {"image_tokens": TOKENS})

    def _checked(self, weights: Weights, name: str, inputs: Specs, outputs: Specs) -> Session:
        graph = self._read(weights, name)
        check_graph(graph, inputs, outputs)
        return self._session(graph)

    def _read(self, weights: Weights, name: str) -> GraphFile:
        """The provider's variant of a graph, or the one that all providers run."""
        exported = _exported(weights)
        variant = f"{name}.{self.provider}.onnx"
        file = variant if (exported.folder / variant).exists() else f"{name}.onnx"
        return read_graph(exported.folder / file, f"{exported.label}/{file}")

    def _session(self, graph: GraphFile) -> Session:
        return Session(graph, self._options, self._device, self._weights)


def pooled_output(config: TextConfig) -> str:
    """Where a text encoder's graph gives the feature of the end token."""
    return "pooler_output" if config.projection_dim is None else "text_embeds"


def moments_output(config: VaeConfig | TaesdConfig) -> str:
    """Where an encoder's graph gives what it has found."""
    return "latent_sample" if isinstance(config, TaesdConfig) else "latent_parameters"


def graph_dtype(component: Component[UNetConfig]) -> str:
    """The dtype that an exported U-Net takes its latents in. Raises ModelLoadError."""
    exported = _exported(component.tensors)
    graph = read_graph(exported.folder / "denoise.onnx", f"{exported.label}/denoise.onnx")
    value = graph.inputs.get("sample")
    if value is None or value.type not in contract.FLOATS:
        raise ModelLoadError(graph.label, "has no input 'sample' of a float type")
    return value.type


def _exported(weights: Weights) -> ExportedWeights:
    if not isinstance(weights, ExportedWeights):
        raise ModelLoadError("model.onnx", "is missing: `bridle export` writes graphs, backend='ort' runs nothing else")
    return weights
