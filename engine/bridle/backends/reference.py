"""The reference backend: the networks over PyTorch operators, any device and dtype. Slow and right."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from bridle.errors import UnsupportedError
from bridle.networks import adapters, clip_vision, controlnet, taesd, text, unet, vae
from bridle.networks.configs import (
    AdapterConfig,
    ControlNetConfig,
    EncoderConfig,
    TaesdConfig,
    UNetConfig,
)
from bridle.networks.image_projection import ImageTokens, project_image
from bridle.rows import KV, Primitive, Rows, StepTerms
from bridle.weights import Component, IPAdapter, Model
from bridle.weights.model import ExportedProjection
from bridle_kernels.guide_step_blend import guide_step_blend
from bridle_kernels.ops import Ops, ReferenceOps

_ALWAYS = frozenset({Primitive.ADDITIVE_EMBEDDING, Primitive.STEP_TABLES, Primitive.LATENT_BLEND})
"""Primitives that no row has to ask for: the time table of every row, and the blend that the sampler does itself."""


Weights = Mapping[str, Tensor]
Network = Callable[..., tuple[Tensor, ...]]
"""Outputs from (ops, weights, *inputs)."""


C = TypeVar("C")
Placed = TypeVar("Placed", bound=Component[Any] | IPAdapter)
"""Weights of a control."""


class ReferenceBackend:
    """Serves every primitive that has an implementation. Thread-safe: it keeps weights and nothing else.

    alone: see `sampler.Evaluator`.
    """

    name = "reference"
    runs_ahead = False
    """See `sampler.Evaluator`."""

    def __init__(
        self, model: Model, device: torch.device, dtype: torch.dtype, ops: Ops | None = None, *, alone: bool = False
    ) -> None:
        self.alone = alone
        self.model = model
        self.device = device
        self.dtype = dtype
        self.ops: Ops = ops or ReferenceOps()

    @staticmethod
    def unavailable() -> str | None:
        """None, or why it cannot be used in this installation."""
        return None

    @staticmethod
    def runs_on(device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or the reason why it cannot compute on a device in a dtype."""
        return None

    @property
    def isa(self) -> str | None:
        """The instruction set of the CPU kernels that it computes with, where it has a choice of them."""
        return None

    @property
    def loading_device(self) -> torch.device:
        """Where the weights of controls are loaded to, before `place_control`."""
        return self.device

    def place_control(self, weights: Placed, name: str) -> Placed:
        """The weights of a control where they stay. name: of their own."""
        return weights

    def admit(self, rows: int, size: tuple[int, int], branches: int) -> None:
        """Raises MemoryBudgetError for what does not fit. rows: evaluated at once. size: (height, width) of latents."""

    @staticmethod
    def suits(dtype: torch.dtype) -> bool:
        """Whether "auto" should take it for a dtype."""
        return True

    @staticmethod
    def supports(primitives: frozenset[Primitive]) -> str | None:
        """None, or the reason why `primitives` are not served, whatever the model and the device."""
        missing = sorted(primitive.value for primitive in primitives - unet.SERVED - _ALWAYS)
        return f"no implementation of {', '.join(missing)} yet" if missing else None

    def encode_text(self, index: int, token_ids: Tensor, skip: int, final_norm: bool) -> text.TextOutput:
        """Hidden states [n, 77, D] and pooled vector of text encoder `index` for token ids [n, 77]."""
        encoder = self.model.text_encoders[index]

        def network(ops: Ops, weights: Weights, ids: Tensor) -> tuple[Tensor, ...]:
            found = text.clip_text(ops, weights, encoder.config, ids, skip=skip, final_norm=final_norm)
            return found.hidden, found.pooled

        name = ("text", skip, final_norm)
        return text.TextOutput(*self.run_network(name, encoder.tensors, network, token_ids.to(self.device)))

    def added_embedding(
        self, component: Component[UNetConfig] | Component[ControlNetConfig], pooled: Tensor, time_ids: Tensor
    ) -> Tensor:
        """[R, D]: SDXL's vector from the pooled text [R, P] and the six sizes [R, 6]."""

        def network(ops: Ops, weights: Weights, pooled: Tensor, time_ids: Tensor) -> tuple[Tensor, ...]:
            return (unet.added_embedding(ops, weights, component.config, pooled, time_ids),)

        return self.run_network("added_embedding", component.tensors, network, pooled, time_ids)[0]

    def time_table(
        self,
        component: Component[UNetConfig] | Component[ControlNetConfig],
        timesteps: Tensor,
        added: Tensor | None,
    ) -> Tensor:
        """[S, sumC]: the shifts of all ResBlocks for every step."""

        def network(ops: Ops, weights: Weights, timesteps: Tensor, added: Tensor | None = None) -> tuple[Tensor, ...]:
            return (unet.time_table(ops, weights, component.config, timesteps, added),)

        inputs = (timesteps.to(self.device), *(() if added is None else (added,)))
        return self.run_network("time_table", component.tensors, network, *inputs)[0]

    def cross_kv(
        self, component: Component[UNetConfig] | Component[ControlNetConfig], context: Tensor
    ) -> tuple[KV, ...]:
        """Keys and values of context [R, L, D] at every cross-attention site."""
        return self._cross_kv(component.tensors, component.config, context)

    def encode_hint(self, component: Component[ControlNetConfig], image: Tensor) -> Tensor:
        """[R, C0, h, w] from a control image [R, 3, H, W]."""

        def network(ops: Ops, weights: Weights, image: Tensor) -> tuple[Tensor, ...]:
            return (controlnet.encode_hint(ops, weights, component.config, image),)

        return self.run_network("hint", component.tensors, network, image)[0]

    def adapter_features(self, component: Component[AdapterConfig], image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of a control image [R, C, H, W], finest first."""

        def network(ops: Ops, weights: Weights, image: Tensor) -> tuple[Tensor, ...]:
            return adapters.adapter(ops, weights, component.config, image)

        return self.run_network("adapter", component.tensors, network, image)

    def encode_image_prompt(self, adapter: IPAdapter, pixels: Tensor) -> ImageTokens:
        """Tokens [B, T, D] of B images, and what the unconditional rows get in their place: T is `adapter.tokens`.

        pixels: [B, 3, S, S] of `clip_images.clip_pixels`, S = `adapter.image_encoder.config.image_size`. Unconditional are
        the tokens of a zero image embedding (base), or of an image that is zero after normalisation (plus, full): the
        same B times over. As in diffusers (`encode_image`).
        """
        pixels = pixels.to(self.device, self.dtype)
        features = self._image_features(adapter, pixels)
        if adapter.kind == "base":
            blank = torch.zeros_like(features[:1])
        else:
            blank = self._image_features(adapter, torch.zeros_like(pixels[:1]))
        tokens, empty = (self._image_tokens(adapter, part) for part in (features, blank))
        return ImageTokens(tokens, empty.expand_as(tokens))

    def image_prompt_kv(self, adapter: IPAdapter, tokens: Tensor) -> tuple[KV, ...]:
        """The adapter's keys and values [R, L, H, d] of image tokens [R, L, D] at every cross-attention site.

        In the order of `unet.attention_sites`, as `cross_kv` gives those of the text. Tokens of several images that share
        a softmax are one row of L = images * T.
        """
        return self._cross_kv(adapter.attention, self.model.unet.config, tokens)

    def encode_image(self, image: Tensor, tiling: bool) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of the latents, [R, 4, h, w], in the sampler's scale; no variance for AutoencoderTiny."""
        config = self.model.vae.config
        if isinstance(config, TaesdConfig):
            return self._encoded(image), None
        found = vae.moments_in_tiles(config, image, self._encoded) if tiling else self._encoded(image)
        mean, log_variance = vae.split_moments(self.ops, config, found)
        factor = config.scaling_factor
        return mean * factor, log_variance.clamp(-30.0, 20.0) + 2.0 * math.log(factor)

    def decode_image(self, latents: Tensor, tiling: bool) -> Tensor:
        """Images [R, 3, H, W] in about [-1, 1] from latents in the sampler's scale."""
        config = self.model.vae.config
        if isinstance(config, TaesdConfig):
            return self._decoded(latents)
        latents = latents / config.scaling_factor
        return vae.decode_in_tiles(config, latents, self._decoded) if tiling else self._decoded(latents)

    def evaluate(self, rows: Rows) -> Tensor:
        """Model outputs [R, C, h, w]. Raises UnsupportedError for a primitive that is not served."""
        self.refuse_unserved(rows)
        model = self.model.unet
        return unet.unet(self.ops, model.tensors, model.config, rows, unet.all_residuals(self.ops, rows))

    def step(self, parts: Sequence[Rows], terms: StepTerms) -> tuple[Tensor, Tensor]:
        """See `sampler.Evaluator.step`: the networks part by part, then guidance, solver step and blend."""
        outputs = torch.cat([self.evaluate(rows) for rows in parts])
        return guide_step_blend(outputs, **terms.arguments())

    def refuse_unserved(self, rows: Rows) -> None:
        """Raises UnsupportedError for a primitive that is not served."""
        asked = rows.primitives()
        reason = self.supports(asked)
        if reason is not None:
            raise UnsupportedError(", ".join(sorted(primitive.value for primitive in asked)), self.name, reason)

    def run_network(self, name: Hashable, weights: Weights, network: Network, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`network(ops, weights, *inputs)`. Nothing but the name, the weights and the inputs may matter to the result."""
        return network(self.ops, weights, *inputs)

    def _encoded(self, image: Tensor) -> Tensor:
        """The encoder's output for an image or a tile: moments, latents of AutoencoderTiny."""
        config = self.model.vae.config
        if isinstance(config, TaesdConfig):
            return self._autoencoder("tiny encoder", taesd.encode, config, image)
        return self._autoencoder("encoder", vae.vae_moments, config, image)

    def _decoded(self, latents: Tensor) -> Tensor:
        """The decoder's output for latents or a tile of them."""
        config = self.model.vae.config
        if isinstance(config, TaesdConfig):
            return self._autoencoder("tiny decoder", taesd.decode, config, latents)
        return self._autoencoder("decoder", vae.vae_decode, config, latents)

    def _autoencoder(
        self, name: str, network: Callable[[Ops, Weights, C, Tensor], Tensor], config: C, x: Tensor
    ) -> Tensor:
        def run(ops: Ops, weights: Weights, x: Tensor) -> tuple[Tensor, ...]:
            return (network(ops, weights, config, x),)

        return self.run_network(name, self.model.vae.tensors, run, x)[0]

    def _image_features(self, adapter: IPAdapter, pixels: Tensor) -> Tensor:
        """What the projection reads: [B, 1, F] image embeddings (base), or [B, N, F] penultimate hidden states."""
        encoder = adapter.image_encoder
        base = adapter.kind == "base"
        network = clip_vision.image_embeds if base else partial(clip_vision.hidden_states, skip=1)

        def run(ops: Ops, weights: Weights, pixels: Tensor) -> tuple[Tensor, ...]:
            return (network(ops, weights, encoder.config, pixels),)

        return self.run_network("image_embeds" if base else "penultimate", encoder.tensors, run, pixels)[0]

    def _image_tokens(self, adapter: IPAdapter, features: Tensor) -> Tensor:
        config = adapter.projection.config
        assert not isinstance(config, ExportedProjection), "weights do not go with a projection that is a graph"

        def run(ops: Ops, weights: Weights, features: Tensor) -> tuple[Tensor, ...]:
            return (project_image(ops, weights, config, features),)

        return self.run_network("image tokens", adapter.projection.tensors, run, features)[0]

    def _cross_kv(self, weights: Weights, config: EncoderConfig, context: Tensor) -> tuple[KV, ...]:
        def run(ops: Ops, weights: Weights, context: Tensor) -> tuple[Tensor, ...]:
            return tuple(part for kv in unet.cross_kv(ops, weights, config, context) for part in (kv.k, kv.v))

        parts = self.run_network("cross_kv", weights, run, context)
        return tuple(KV(k, v) for k, v in zip(parts[::2], parts[1::2], strict=True))
