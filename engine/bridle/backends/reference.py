"""The reference backend: the networks over PyTorch operators, any device and dtype. Slow and right."""

import math

import torch
from torch import Tensor

from bridle.errors import UnsupportedError
from bridle.networks import adapters, clip_vision, controlnet, taesd, text, unet, vae
from bridle.networks.configs import (
    AdapterConfig,
    ControlNetConfig,
    LinearProjectionConfig,
    TaesdConfig,
    UNetConfig,
)
from bridle.networks.image_projection import ImageTokens, project_image
from bridle.rows import KV, Primitive, Rows
from bridle.weights import Component, IPAdapter, Model
from bridle_kernels.ops import Ops, ReferenceOps

_ALWAYS = frozenset({Primitive.ADDITIVE_EMBEDDING, Primitive.STEP_TABLES, Primitive.LATENT_BLEND})
"""Primitives that no row has to ask for: the time table of every row, and the blend that the sampler does itself."""


class ReferenceBackend:
    """Serves every primitive that has an implementation. Thread-safe: it keeps weights and nothing else."""

    name = "reference"

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype, ops: Ops | None = None) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self.ops: Ops = ops or ReferenceOps()

    @staticmethod
    def runs_on(device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or the reason why it cannot compute on a device in a dtype."""
        return None

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
        ids = token_ids.to(self.device)
        return text.clip_text(self.ops, encoder.tensors, encoder.config, ids, skip=skip, final_norm=final_norm)

    def added_embedding(
        self, component: Component[UNetConfig] | Component[ControlNetConfig], pooled: Tensor, time_ids: Tensor
    ) -> Tensor:
        """[R, D]: SDXL's vector from the pooled text [R, P] and the six sizes [R, 6]."""
        return unet.added_embedding(self.ops, component.tensors, component.config, pooled, time_ids)

    def time_table(
        self,
        component: Component[UNetConfig] | Component[ControlNetConfig],
        timesteps: Tensor,
        added: Tensor | None,
    ) -> Tensor:
        """[S, sumC]: the shifts of all ResBlocks for every step."""
        return unet.time_table(self.ops, component.tensors, component.config, timesteps.to(self.device), added)

    def cross_kv(
        self, component: Component[UNetConfig] | Component[ControlNetConfig], context: Tensor
    ) -> tuple[KV, ...]:
        """Keys and values of context [R, L, D] at every cross-attention site."""
        return unet.cross_kv(self.ops, component.tensors, component.config, context)

    def encode_hint(self, component: Component[ControlNetConfig], image: Tensor) -> Tensor:
        """[R, C0, h, w] from a control image [R, 3, H, W]."""
        return controlnet.encode_hint(self.ops, component.tensors, component.config, image)

    def adapter_features(self, component: Component[AdapterConfig], image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of a control image [R, C, H, W], finest first."""
        return adapters.adapter(self.ops, component.tensors, component.config, image)

    def encode_image_prompt(self, adapter: IPAdapter, pixels: Tensor) -> ImageTokens:
        """Tokens [B, T, D] of B images, and what the unconditional rows get in their place: T is `adapter.tokens`.

        pixels: [B, 3, S, S] of `clip_images.clip_pixels`, S = `adapter.image_encoder.config.image_size`. Unconditional are
        the tokens of a zero image embedding (base), or of an image that is zero after normalisation (plus, full): the
        same B times over. As in diffusers (`encode_image`).
        """
        encoder, projection = adapter.image_encoder, adapter.projection
        pixels = pixels.to(self.device, self.dtype)
        if isinstance(projection.config, LinearProjectionConfig):
            features = clip_vision.image_embeds(self.ops, encoder.tensors, encoder.config, pixels)
            blank = torch.zeros_like(features[:1])
        else:
            features, blank = (
                clip_vision.hidden_states(self.ops, encoder.tensors, encoder.config, image, skip=1)
                for image in (pixels, torch.zeros_like(pixels[:1]))
            )
        tokens, empty = (
            project_image(self.ops, projection.tensors, projection.config, part) for part in (features, blank)
        )
        return ImageTokens(tokens, empty.expand_as(tokens))

    def image_prompt_kv(self, adapter: IPAdapter, tokens: Tensor) -> tuple[KV, ...]:
        """The adapter's keys and values [R, L, H, d] of image tokens [R, L, D] at every cross-attention site.

        In the order of `unet.attention_sites`, as `cross_kv` gives those of the text. Tokens of several images that share
        a softmax are one row of L = images * T.
        """
        return unet.cross_kv(self.ops, adapter.attention, self.model.unet.config, tokens)

    def encode_image(self, image: Tensor, tiling: bool) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of the latents, [R, 4, h, w], in the sampler's scale; no variance for AutoencoderTiny."""
        component = self.model.vae
        if isinstance(component.config, TaesdConfig):
            return taesd.encode(self.ops, component.tensors, component.config, image), None
        encode = vae.vae_encode_tiled if tiling else vae.vae_encode
        mean, log_variance = encode(self.ops, component.tensors, component.config, image)
        factor = component.config.scaling_factor
        return mean * factor, log_variance.clamp(-30.0, 20.0) + 2.0 * math.log(factor)

    def decode_image(self, latents: Tensor, tiling: bool) -> Tensor:
        """Images [R, 3, H, W] in about [-1, 1] from latents in the sampler's scale."""
        component = self.model.vae
        if isinstance(component.config, TaesdConfig):
            return taesd.decode(self.ops, component.tensors, component.config, latents)
        decode = vae.vae_decode_tiled if tiling else vae.vae_decode
        return decode(self.ops, component.tensors, component.config, latents / component.config.scaling_factor)

    def evaluate(self, rows: Rows) -> Tensor:
        """Model outputs [R, C, h, w]. Raises UnsupportedError for a primitive that is not served."""
        self.refuse_unserved(rows)
        model = self.model.unet
        return unet.unet(self.ops, model.tensors, model.config, rows, unet.all_residuals(self.ops, rows))

    def refuse_unserved(self, rows: Rows) -> None:
        """Raises UnsupportedError for a primitive that is not served."""
        asked = rows.primitives()
        reason = self.supports(asked)
        if reason is not None:
            raise UnsupportedError(", ".join(sorted(primitive.value for primitive in asked)), self.name, reason)
