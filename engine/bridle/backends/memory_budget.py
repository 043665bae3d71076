"""A budget of device memory: what is needed is added up before it is taken, and what can wait elsewhere does.

Weights that are not on the device are fetched when a network reads them, one tensor at a time, and dropped after their use:

1. what makes the text's keys and values (`to_k`, `to_v` of the cross-attentions) runs once per request, not once per step;
2. text encoders likewise;
3. so do a T2I-Adapter and an image prompt's encoder, projection and attention that do not fit;
4. a ControlNet that does not fit is streamed in every step.

The autoencoder takes tiles where the whole image does not fit. What was captured keeps the memory of its activations: where
an image does not fit beside it, it is given back first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from bridle.errors import MemoryBudgetError
from bridle.networks.configs import EncoderConfig, TaesdConfig, UNetConfig, VaeConfig
from bridle.networks.layout import decoder_layout, encoder_layout, level_sizes
from bridle.networks.trunk import attention_sites
from bridle.weights import Component, Model

C = TypeVar("C")
_WORKING = 20
"""Images of a level's width that are alive at once inside one block: GEGLU's product is 8 of them and its result 4."""
_TEXT = 77
"""Tokens of a prompt."""
_COPIES = 3
"""Of keys and values: a request's own, those of its batch, and those in a program's places."""
_DECODING = 5
"""Images of full size and the decoder's widest channels there: input, norm, convolution, residual, enlarged."""


@dataclass(frozen=True, slots=True)
class Load:
    """What runs at once. rows: of the U-Net. size: (height, width) of the latents. branches: ControlNets of a row."""

    rows: int
    size: tuple[int, int]
    branches: int = 0
    tiled: bool = False


class Elsewhere(Mapping[str, Tensor]):
    """Weights of which some lie elsewhere: what is read is on `device`, for as long as the reader keeps it."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._tensors = tensors
        self._device = device

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device, non_blocking=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class MemoryBudget:
    """limit: bytes on `device`. width: bytes of an activation's element."""

    def __init__(self, limit: int, device: torch.device, width: int) -> None:
        self.limit = limit
        self._device = device
        self._width = width
        self._resident: dict[str, int] = {}
        self._branches = 0

    @property
    def resident(self) -> int:
        """Bytes of all weights that stay on the device."""
        return sum(self._resident.values())

    def place_model(self, model: Model) -> Model:
        """A model from the computer's memory, on the device as far as it fits beside a pair of rows.

        Raises MemoryBudgetError where one row does not fit, before anything is moved.
        """
        size = model.unet.config.sample_size
        sites = attention_sites(model.unet.config)
        projections = frozenset(f"{site.name}.{which}.weight" for site in sites for which in ("to_k", "to_v"))
        parts = {"unet": model.unet, "vae": model.vae, **{e.file: e for e in model.text_encoders}}
        waiting: dict[str, frozenset[str]] = dict.fromkeys(parts, frozenset())
        self._resident = {name: _bytes(part.tensors) for name, part in parts.items()}
        if self.need(model, Load(2, size)) > self.limit:
            waiting["unet"] = projections
            waiting |= {encoder.file: frozenset(encoder.tensors) for encoder in model.text_encoders}
            self._resident = {name: _staying(part.tensors, waiting[name]) for name, part in parts.items()}
        self.admit(model, Load(1, size))
        vae: Any = self._placed(model.vae, waiting["vae"])
        return replace(
            model,
            unet=self._placed(model.unet, waiting["unet"]),
            vae=vae,
            text_encoders=tuple(self._placed(encoder, waiting[encoder.file]) for encoder in model.text_encoders),
        )

    def place(self, model: Model, tensors: Mapping[str, Tensor], name: str, branches: int = 0) -> Mapping[str, Tensor]:
        """A control's weights from the computer's memory: on the device where they fit beside a pair of rows, else streamed.

        name: of these weights; those that are there already stay. branches: how many ControlNets these are; a request
        may ask for all that were ever placed.
        """
        if name in self._resident:
            return tensors
        self._resident[name] = _bytes(tensors)
        self._branches += branches
        load = Load(2, model.unet.config.sample_size, self._branches, tiled=True)
        waiting = frozenset() if self.need(model, load) <= self.limit else frozenset(tensors)
        self._resident[name] = _staying(tensors, waiting)
        return self._moved(tensors, waiting)

    def need(self, model: Model, load: Load) -> int:
        """Bytes for the weights, what a program has copies of, and the larger of denoising and the autoencoder's work."""
        image = self._width * decode_elements(model.vae.config, load.size, load.tiled)
        return self.resident + self.copies(model, load) + max(self.denoising(model, load), image)

    def denoising(self, model: Model, load: Load) -> int:
        """Bytes of activations while rows are evaluated."""
        return self._width * load.rows * row_elements(model.unet.config, load.size, load.branches)

    def copies(self, model: Model, load: Load) -> int:
        """Bytes of all copies of keys and values."""
        return _COPIES * self.places(model, load)

    def places(self, model: Model, load: Load) -> int:
        """Bytes of keys and values that the program of a load has places for: those of a prompt of 77 tokens for every row,
        in the U-Net and in each ControlNet, which has fewer sites."""
        sites = sum(site.heads * site.dim for site in attention_sites(model.unet.config))
        return self._width * load.rows * (1 + load.branches) * 2 * _TEXT * sites

    def spare(self, model: Model, load: Load) -> int:
        """Bytes of the limit that a load leaves to the places of programs, its own and others'."""
        return self.limit - self.need(model, replace(load, tiled=True)) + self.places(model, load)

    def admit(self, model: Model, load: Load) -> None:
        """Raises MemoryBudgetError where a load does not fit, although its decoding takes tiles."""
        need = self.need(model, replace(load, tiled=True))
        if need > self.limit:
            height, width = load.size
            what = f"{load.rows} rows of latents {width}x{height} with {load.branches} ControlNets"
            raise MemoryBudgetError(need, self.limit, what)

    def tiles(self, model: Model, size: tuple[int, int]) -> bool:
        """Whether an image is encoded and decoded in tiles. size: of its latents."""
        return not self.fits(model, size, False, 0)

    def fits(self, model: Model, size: tuple[int, int], tiled: bool, held: int) -> bool:
        """Whether the autoencoder can work beside `held` bytes. size: of the latents."""
        return self.resident + held + self._width * decode_elements(model.vae.config, size, tiled) <= self.limit

    def _placed(self, component: Component[C], waiting: frozenset[str]) -> Component[C]:
        return replace(component, tensors=self._moved(component.tensors, waiting))

    def _moved(self, tensors: Mapping[str, Tensor], waiting: frozenset[str]) -> Mapping[str, Tensor]:
        moved = {name: parked(t) if name in waiting else t.to(self._device) for name, t in tensors.items()}
        return Elsewhere(moved, self._device) if waiting else moved


def parked(tensor: Tensor) -> Tensor:
    """In the computer's memory, pinned, so that it can be fetched without waiting and inside a captured graph."""
    return tensor.cpu().pin_memory() if torch.cuda.is_available() else tensor.cpu()


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _staying(tensors: Mapping[str, Tensor], waiting: frozenset[str]) -> int:
    """Bytes on the device: what does not wait, and the largest of what is fetched, two of which overlap."""
    fetched = max((tensors[name].nbytes for name in waiting), default=0)
    return sum(tensor.nbytes for name, tensor in tensors.items() if name not in waiting) + 2 * fetched


def row_elements(config: UNetConfig, size: tuple[int, int], branches: int = 0) -> int:
    """Elements that are alive at once while one row is evaluated: skip connections, those of branches, one block's work."""
    sizes = [height * width for height, width in level_sizes(size, config.levels)]
    skips = skip_elements(config, sizes)
    blocks = [(stage.level, stage.res_block) for stage in decoder_layout(config) if stage.res_block]
    working = max(sizes[level] * max(block.inputs, block.outputs) for level, block in blocks)
    tallest = max(sizes[level] * channels for level, channels in enumerate(config.block_out_channels))
    return skips * (1 + branches) + 4 * working + _WORKING * tallest


def skip_elements(config: EncoderConfig, sizes: list[int]) -> int:
    """Of all skip connections of one row. sizes: cells of each level."""
    encoder = encoder_layout(config)
    total = encoder.widths[0] * sizes[0]
    for stage, width in zip(encoder.stages, encoder.widths[1:], strict=True):
        total += width * sizes[stage.level + 1 if stage.resample else stage.level]
    return total


def decode_elements(config: VaeConfig | TaesdConfig, size: tuple[int, int], tiled: bool) -> int:
    """Elements that are alive at once while one image is decoded, whole or in tiles."""
    if isinstance(config, TaesdConfig):
        return _DECODING * 64 * config.scale**2 * size[0] * size[1]
    side = config.sample_size // config.scale
    height, width = (min(edge, side) if tiled else edge for edge in size)
    widest = max(config.block_out_channels[:2])
    whole = 3 * (config.scale * size[0]) * (config.scale * size[1])
    return _DECODING * widest * (config.scale * height) * (config.scale * width) + 2 * whole
