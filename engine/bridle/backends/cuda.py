"""The CUDA backend: the networks over Triton kernels, cuDNN and cuBLAS; a whole step is one CUDA graph."""

import importlib.util
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from bridle.backends.buckets import bucket
from bridle.backends.cuda_graphs import GraphRecorder, SideStreams, exactness
from bridle.backends.memory_budget import Elsewhere, Load, MemoryBudget
from bridle.backends.reference import Network, Placed, ReferenceBackend, Weights
from bridle.backends.static_rows import Evaluation
from bridle.backends.step_programs import InOrder, Lanes, LateResiduals, Outputs, Programs, Recorder
from bridle.networks import unet
from bridle.networks.configs import ControlNetConfig
from bridle.networks.controlnet import branch_residuals
from bridle.rows import Rows, StepTerms
from bridle.weights import Component, IPAdapter, Model

C = TypeVar("C", bound=Component[Any])

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels compute in."""
PROGRAMS = 16
"""Kinds of rows that are kept, each with a graph; they share the memory of their activations."""


class CudaBackend(ReferenceBackend):
    """Serves every primitive of the reference on one CUDA device, in float16, bfloat16 and float32. Thread-safe.

    A graph is captured for every size, bucket of rows and set of features: U-Net, ControlNets beside it, guidance, solver
    step and blend. Strengths, prompts, maps, schedules and time steps are data that is copied to it. alone: see
    `sampler.Evaluator`; kernels are then chosen without timing them, and nothing runs on a second stream. memory_budget: bytes
    of the device's memory that PyTorch may take, see `MemoryBudget`; the model is then given in the computer's memory.
    """

    name = "cuda"
    runs_ahead = True

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        *,
        alone: bool = False,
        memory_budget: int | None = None,
    ) -> None:
        # Triton takes a second to import, which other backends need not wait for.
        from bridle_kernels.guide_step_blend.triton import guide_step_blend
        from bridle_kernels.triton_ops import TritonOps

        self._budget = None if memory_budget is None else MemoryBudget(memory_budget, device, dtype.itemsize)
        if self._budget is not None:
            # Also what waits: a weight that is fetched in every step should not be laid out in every step.
            for component in (model.unet, model.vae):
                keep_channels_last(component.tensors)
            model = self._budget.place_model(model)
            self.limit_memory(self._budget.limit, device)
        super().__init__(model, device, dtype, TritonOps(), alone=alone)
        self._guide_step_blend = guide_step_blend
        # What is fetched on one stream must not be given back while another reads it.
        self._lanes = InOrder() if alone or memory_budget is not None else self.make_lanes()
        self._programs = Programs(self.compute, self.make_recorder(), PROGRAMS)
        self._laid_out: dict[int, Weights] = {}
        for component in (model.unet, model.vae):
            self._lay_out(component.tensors)

    @staticmethod
    def unavailable() -> str | None:
        """None, or why it cannot be used in this installation."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        return None if torch.cuda.is_available() else "PyTorch sees no GPU here"

    @staticmethod
    def runs_on(device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or the reason why it cannot compute on a device in a dtype."""
        if device.type != "cuda":
            return f"it runs on CUDA devices, not on {device}"
        if dtype not in DTYPES:
            return f"it computes in float32, float16 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
        return None

    def make_recorder(self) -> Recorder:
        """What captures."""
        return GraphRecorder(self.device)

    def make_lanes(self) -> Lanes:
        """Where branches run."""
        return SideStreams(self.device)

    @staticmethod
    def limit_memory(limit: int, device: torch.device) -> None:
        """PyTorch refuses what would go beyond, should the sums be wrong. It is so for all of the process."""
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)

    @property
    def loading_device(self) -> torch.device:
        """See `ReferenceBackend.loading_device`."""
        return self.device if self._budget is None else torch.device("cpu")

    def place_control(self, weights: Placed, name: str) -> Placed:
        """See `ReferenceBackend.place_control`."""
        if self._budget is None:
            return weights
        # It is judged against the budget alone, without what captured steps hold.
        self._programs.clear()
        if isinstance(weights, IPAdapter):
            return replace(
                weights,
                projection=self._placed(weights.projection, f"{name}: projection"),
                attention=self._budget.place(self.model, weights.attention, f"{name}: attention"),
                image_encoder=self._placed(weights.image_encoder, str(weights.image_encoder_folder)),
            )
        return self._placed(weights, name, branches=int(isinstance(weights.config, ControlNetConfig)))

    def _placed(self, component: C, name: str, branches: int = 0) -> C:
        assert self._budget is not None
        if not isinstance(component.tensors, Elsewhere):
            keep_channels_last(component.tensors)
        return replace(component, tensors=self._budget.place(self.model, component.tensors, name, branches))

    def admit(self, rows: int, size: tuple[int, int], branches: int) -> None:
        """See `ReferenceBackend.admit`. Programs are made for buckets of rows."""
        if self._budget is not None:
            load = Load(bucket(rows), size, branches)
            self._budget.admit(self.model, load)
            self._programs.room = self._budget.spare(self.model, load)
            denoising = self._budget.denoising(self.model, load)
            self._programs.crowded = (
                self._budget.need(self.model, replace(load, tiled=True)) + denoising > self._budget.limit
            )

    def encode_image(self, image: Tensor, tiling: bool) -> tuple[Tensor, Tensor | None]:
        """See `ReferenceBackend.encode_image`; in tiles also where the whole image does not fit."""
        scale = self.model.vae.config.scale
        return super().encode_image(image, self._tiled((image.shape[-2] // scale, image.shape[-1] // scale), tiling))

    def decode_image(self, latents: Tensor, tiling: bool) -> Tensor:
        """See `ReferenceBackend.decode_image`; in tiles also where the whole image does not fit."""
        return super().decode_image(latents, self._tiled((latents.shape[-2], latents.shape[-1]), tiling))

    def _tiled(self, size: tuple[int, int], tiling: bool) -> bool:
        """Whether the autoencoder takes tiles, for which captured steps make room where they have to. size: of latents."""
        if self._budget is None:
            return tiling
        tiled = tiling or self._budget.tiles(self.model, size)
        if len(self._programs) and not self._budget.fits(self.model, size, tiled, self._held(self._budget)):
            self._programs.clear()
        return tiled

    def _held(self, budget: MemoryBudget) -> int:
        """Bytes of captured steps: the places of all, and the activations of the largest, which all share."""
        rows = [evaluation.rows for evaluation in self._programs.evaluations]
        loads = [Load(r.sample.shape[0], (r.sample.shape[2], r.sample.shape[3]), len(r.branches)) for r in rows]
        return self._programs.nbytes + max((budget.denoising(self.model, load) for load in loads), default=0)

    @property
    def captures(self) -> int:
        """Programs that were made since it was loaded."""
        return self._programs.captures

    @property
    def uncaptured(self) -> int:
        """Those of them that could not be captured and run op by op; why is in the log."""
        return self._programs.uncaptured

    def evaluate(self, rows: Rows) -> Tensor:
        """Model outputs [R, C, h, w]. Raises UnsupportedError for a primitive that is not served."""
        self.refuse_unserved(rows)
        return self._programs.run(Evaluation(rows), (rows.sample.shape[0],))[0]

    def step(self, parts: Sequence[Rows], terms: StepTerms) -> tuple[Tensor, Tensor]:
        """See `sampler.Evaluator.step`. Rows in one part are one graph with their terms."""
        if len(parts) > 1:
            outputs = torch.cat([self.evaluate(rows) for rows in parts])
            latents, guided = self._guide_step_blend(outputs, **terms.arguments())
            return latents, guided
        self.refuse_unserved(parts[0])
        samples = terms.latents.shape[0]
        latents, guided = self._programs.run(Evaluation(parts[0], terms), (samples, samples))
        return latents, guided

    def compute(self, evaluation: Evaluation) -> Outputs:
        """What a program captures."""
        with exactness(self.alone):
            outputs = self._unet(evaluation.rows)
            if evaluation.terms is None:
                return (outputs,)
            latents, guided = self._guide_step_blend(outputs, **evaluation.terms.arguments())
            return latents, guided

    def run_network(self, name: Hashable, weights: Weights, network: Network, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `ReferenceBackend.run_network`."""
        self._lay_out(weights)
        with exactness(self.alone):
            return super().run_network(name, weights, network, *inputs)

    def _unet(self, rows: Rows) -> Tensor:
        """The branches beside the encoder of the U-Net, which reads nothing of them before its middle."""
        works = [partial(branch_residuals, self.ops, branch, rows.sample) for branch in rows.branches]
        computed, join = self._lanes.start(works)
        late = frozenset(point for residuals in computed for point in residuals)
        residuals = LateResiduals(unet.merged_residuals(rows.residuals, computed), late, join)
        model = self.model.unet
        out = unet.unet(self.ops, model.tensors, model.config, rows, residuals)
        residuals.join()
        return out

    def _lay_out(self, weights: Weights) -> None:
        """Before their first use, which for a ControlNet is its hint: no result may depend on what was computed earlier."""
        if id(weights) not in self._laid_out and not isinstance(weights, Elsewhere):
            keep_channels_last(weights)
            self._laid_out[id(weights)] = weights


def keep_channels_last(tensors: Mapping[str, Tensor]) -> None:
    """Lays out the weights of convolutions in place with their input channels last, which cuDNN then need not do."""
    for tensor in tensors.values():
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
