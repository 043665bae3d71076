"""The peers' networks: diffusers' own modules as functions of tensors alone, which every runtime takes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from cpu.workspace import CONTROL_SCALE

Load = Callable[[Any, Path, torch.dtype], Any]
"""A network of diffusers' class from its folder, in a dtype."""


def pretrained(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """One of its own."""
    return kind.from_pretrained(folder, torch_dtype=dtype)


class Denoiser(nn.Module):
    """The U-Net: sample [R, 4, h, w], timestep [1], text [R, 77, D] -> [R, 4, h, w]."""

    def __init__(self, model: Path, dtype: torch.dtype, load: Load = pretrained) -> None:
        super().__init__()
        self.unet = load(UNet2DConditionModel, model / "unet", dtype)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        """A tuple of one."""
        return tuple(self.unet(sample, timestep, text, return_dict=False))


class SdxlDenoiser(Denoiser):
    """With SDXL's pooled text [R, P] and sizes [R, 6]."""

    def forward(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, time_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """A tuple of one."""
        added = {"text_embeds": pooled, "time_ids": time_ids}
        return tuple(self.unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False))


class ControlledDenoiser(Denoiser):
    """With ControlNets, whose control images [R, 3, H, W] follow the text."""

    def __init__(self, model: Path, dtype: torch.dtype, folders: Sequence[str], load: Load = pretrained) -> None:
        super().__init__(model, dtype, load)
        self.nets = nn.ModuleList(load(ControlNetModel, model / f, dtype) for f in folders)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *hints: Tensor) -> tuple[Tensor, ...]:
        """A tuple of one."""
        down: list[Tensor] = []
        middle: Tensor | None = None
        for net, hint in zip(self.nets, hints, strict=True):
            found, last = net(sample, timestep, text, hint, conditioning_scale=CONTROL_SCALE, return_dict=False)
            down = [a + b for a, b in zip(down, found, strict=True)] if down else list(found)
            middle = last if middle is None else middle + last
        return tuple(
            self.unet(
                sample,
                timestep,
                text,
                down_block_additional_residuals=tuple(down),
                mid_block_additional_residual=middle,
                return_dict=False,
            )
        )


class CapturingDenoiser(Denoiser):
    """Also returns, for every cross-attention outside of the middle, columns of the conditional rows' maps [r, N, c].

    Rows are unconditional and conditional in turns. As heat-map tools do it: the whole map is made, and averaged over heads.
    """

    def __init__(self, model: Path, dtype: torch.dtype, columns: Sequence[int], load: Load = pretrained) -> None:
        super().__init__(model, dtype, load)
        self.maps: list[Tensor] = []
        self.columns = list(columns)
        processors = {
            name: _Capture(self) if ".attn2." in name and not name.startswith("mid") else processor
            for name, processor in self.unet.attn_processors.items()
        }
        self.unet.set_attn_processor(processors)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        """Output and maps."""
        self.maps = []
        (output,) = super().forward(sample, timestep, text)
        return (output, *self.maps)


class _Capture:
    def __init__(self, owner: CapturingDenoiser) -> None:
        self._owner = owner

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        q, k, v = (
            x.unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        maps = (attn.scale * q @ k.transpose(-1, -2)).softmax(-1)
        self._owner.maps.append(maps[1::2, :, :, self._owner.columns].mean(1))
        return attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """The autoencoder's decoder: [R, 4, h, w] in the sampler's scale -> [R, 3, H, W]."""

    def __init__(self, model: Path, dtype: torch.dtype, load: Load = pretrained) -> None:
        super().__init__()
        self.vae = load(AutoencoderKL, model / "vae", dtype)
        del self.vae.encoder

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        """A tuple of one."""
        return tuple(self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False))
