"""A row as diffusers does it: eager with channels last and fused attention, or compiled with graphs by torch.compile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cpu import modules
from cpu.peers import factors
from cpu.workspace import SCHEDULER, control_folders
from gpu.rows import Row, side

DTYPE = torch.float16
COLUMNS = (5, 9)
"""Whose maps are captured."""


class ImagePromptDenoiser(modules.Denoiser):
    """With an IP-Adapter; the image's features [R, 1, T, D] follow the text."""

    def __init__(self, model: Path, dtype: torch.dtype, load: modules.Load) -> None:
        super().__init__(model, dtype, load)
        state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for key, value in load_file(model / "ip-adapter" / "ip-adapter.safetensors").items():
            part, name = key.split(".", 1)
            state[part][name] = value
        self.unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
        self.unet.to(dtype)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, image: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """A tuple of one."""
        added = {"image_embeds": [image]}
        return tuple(self.unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False))


class SdxlImagePromptDenoiser(ImagePromptDenoiser):
    """SDXL with an IP-Adapter: the image's features follow the pooled text and the sizes."""

    def forward(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, time_ids: Tensor, image: Tensor
    ) -> tuple[Tensor, ...]:
        """A tuple of one."""
        added = {"text_embeds": pooled, "time_ids": time_ids, "image_embeds": [image]}
        return tuple(self.unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False))


class SdxlCapturingDenoiser(modules.CapturingDenoiser):
    """SDXL with maps."""

    def forward(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, time_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Output and maps."""
        self.maps = []
        added = {"text_embeds": pooled, "time_ids": time_ids}
        (output,) = self.unet(sample, timestep, text, added_cond_kwargs=added, return_dict=False)
        return (output, *self.maps)


class SdxlControlledDenoiser(modules.ControlledDenoiser):
    """SDXL with ControlNets: hints follow the pooled text and the sizes."""

    def forward(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, time_ids: Tensor, *hints: Tensor
    ) -> tuple[Tensor, ...]:
        """A tuple of one."""
        added = {"text_embeds": pooled, "time_ids": time_ids}
        down: list[Tensor] = []
        middle: Any = None
        for net, hint in zip(self.nets, hints, strict=True):
            found, last = net(
                sample, timestep, text, hint, conditioning_scale=modules.CONTROL_SCALE, added_cond_kwargs=added,
                return_dict=False,
            )  # fmt: skip
            down = [a + b for a, b in zip(down, found, strict=True)] if down else list(found)
            middle = last if middle is None else middle + last
        return tuple(
            self.unet(
                sample,
                timestep,
                text,
                added_cond_kwargs=added,
                down_block_additional_residuals=tuple(down),
                mid_block_additional_residual=middle,
                return_dict=False,
            )
        )


class Shared:
    """Networks that are loaded to the device once and serve many rows, which may not change them. `own` loads others."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._networks: dict[tuple[Path, torch.dtype], Any] = {}

    def load(self, kind: Any, folder: Path, dtype: torch.dtype) -> Any:
        """See `modules.pretrained`."""
        if (folder, dtype) not in self._networks:
            self._networks[folder, dtype] = self.own(kind, folder, dtype)
        return self._networks[folder, dtype]

    def own(self, kind: Any, folder: Path, dtype: torch.dtype) -> Any:
        """Straight to the device: without accelerate, diffusers would first draw all weights on the CPU."""
        (file,) = folder.glob("*.safetensors")
        with torch.device("meta"):
            network = kind.from_config(kind.load_config(folder))
        state = {name: value.to(dtype) for name, value in load_file(file, device=self.device).items()}
        network.load_state_dict(state, assign=True)
        return network.eval().to(memory_format=torch.channels_last)


def network(row: Row, model: Path, shared: Shared) -> nn.Module:
    """The module that a row calls in each step, or the decoder. Those that change a network have one of their own."""
    if not row.steps:
        return modules.Decoder(model, DTYPE, shared.own)
    xl = row.family == "sdxl"
    if row.controlnets:
        return (SdxlControlledDenoiser if xl else modules.ControlledDenoiser)(
            model, DTYPE, control_folders(row), shared.load
        )
    if row.capture:
        return (SdxlCapturingDenoiser if xl else modules.CapturingDenoiser)(model, DTYPE, COLUMNS, shared.own)
    if row.image_prompt:
        return (SdxlImagePromptDenoiser if xl else ImagePromptDenoiser)(model, DTYPE, shared.own)
    return (modules.SdxlDenoiser if xl else modules.Denoiser)(model, DTYPE, shared.load)


def build(row: Row, model: Path, size: str, compiled: bool, shared: Shared) -> Callable[[], Tensor]:
    """What one run does: latents after all steps, or an image."""
    device = shared.device
    module = network(row, model, shared).to(device).eval().to(memory_format=torch.channels_last)
    call = torch.compile(module, mode="max-autotune", fullgraph=True, dynamic=False) if compiled else module
    rows = row.rows_per_request * row.images
    extent = side(row, size)
    made = _Inputs(device, rows)
    if not row.steps:
        latents = made.randn(1, 4, extent, extent, scale=0.18215)
        return lambda: call(latents)[0]
    inputs = made.conditions(row, module, extent)
    start = made.randn(row.images, 4, extent, extent).float()
    weights = factors(row, extent).to(device)

    def run() -> Tensor:
        return denoise(call, start, inputs, row, weights)

    return run


def denoise(
    call: Callable[..., tuple[Tensor, ...]], start: Tensor, inputs: list[Tensor], row: Row, weights: Tensor
) -> Tensor:
    """The loop of diffusers' pipelines with DDIM."""
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler.from_config(dict(SCHEDULER))
    scheduler.set_timesteps(row.steps, device=start.device)
    rows, latents = row.rows_per_request, start
    for time in scheduler.timesteps:
        sample = scheduler.scale_model_input(latents.repeat_interleave(rows, 0).to(DTYPE), time)
        output = call(sample.contiguous(memory_format=torch.channels_last), time, *inputs)[0]
        guided = (output.unflatten(0, (-1, rows)) * weights.to(DTYPE)).sum(1)
        latents = scheduler.step(guided, time, latents, return_dict=False)[0]
    return latents


class _Inputs:
    """Random tensors: how long a network takes does not depend on values."""

    def __init__(self, device: str, rows: int) -> None:
        self._device, self._rows = device, rows
        self._generator = torch.Generator(device).manual_seed(0)

    def randn(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self._generator, device=self._device) * scale).to(DTYPE)

    def conditions(self, row: Row, module: Any, extent: int) -> list[Tensor]:
        """What a step is called with after the time step."""
        config, pixels = module.unet.config, 8.0 * extent
        found = [self.randn(self._rows, 77, config.cross_attention_dim)]
        if row.family == "sdxl":
            width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            found.append(self.randn(self._rows, width))
            found.append(torch.tensor([[pixels, pixels, 0.0, 0.0, pixels, pixels]]).repeat(self._rows, 1).to(found[0]))
        if row.image_prompt:
            projection = module.unet.encoder_hid_proj.image_projection_layers[0]
            found.append(self.randn(self._rows, 1, 257, projection.proj_in.in_features))
        hints = (self.randn(self._rows, 3, 8 * extent, 8 * extent).sigmoid() for _ in range(row.controlnets))
        return [*found, *hints]
