"""The reference backend: the networks over PyTorch operators, any device and dtype. Slow and right."""

import math

import torch
from torch import Tensor

from bridle.networks import adapters, controlnet, taesd, text, unet, vae
from bridle.networks.configs import AdapterConfig, ControlNetConfig, TaesdConfig, UNetConfig
from bridle.rows import KV, Primitive, Rows
from bridle.weights import Component, Model
from bridle_kernels.ops import Ops, ReferenceOps


class ReferenceBackend:
    """Serves every primitive that has an implementation. Thread-safe: it keeps weights and nothing else."""

    name = "reference"

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype, ops: Ops | None = None) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self.ops: Ops = ops or ReferenceOps()

    def supports(self, primitives: frozenset[Primitive]) -> str | None:
        """None, or the reason why `primitives` are not served."""
        missing = sorted(primitive.value for primitive in primitives - unet.SERVED)
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
        """Model outputs [R, C, h, w]."""
        model = self.model.unet
        return unet.unet(self.ops, model.tensors, model.config, rows, unet.all_residuals(self.ops, rows))
