"""Vectors of whole sampling loops (tests/goldens), run through Bridle's sampler with their own U-Nets and schedules."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bridle.architectures import ARCHITECTURES
from bridle.backends.cpu import CpuBackend
from bridle.backends.reference import ReferenceBackend
from bridle.lowering import RowPlan
from bridle.networks.configs import UNetConfig, VaeConfig
from bridle.noise import TorchNoise
from bridle.rows import Rows
from bridle.sampler import StepSnapshot, denoise
from bridle.solvers import SolverTable, solver_table
from bridle.track import Track
from bridle.weights import Component, Model

GOLDENS = Path(__file__).parents[1] / "goldens"
CPU = torch.device("cpu")
BACKENDS = {"reference": ReferenceBackend, "cpu": CpuBackend}


@dataclass(frozen=True)
class GoldenLoop:
    """A case: configuration, inputs, outputs with the distance that each allows, and a backend of its networks."""

    fields: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    backend: ReferenceBackend
    table: SolverTable

    @classmethod
    def read(cls, case: str, backend: str) -> "GoldenLoop":
        """case: folder below tests/goldens. A case without an autoencoder gets one of the usual factor and no weights."""
        fields = json.loads((GOLDENS / case / "config.json").read_text())
        parts = {part: load_file(GOLDENS / case / f"{part}.safetensors") for part in ("inputs", "outputs", "weights")}
        tensors = {name: _under(parts["weights"], prefix) for name, prefix in fields["weights_prefix"].items()}
        unet = UNetConfig.from_dict(fields["unet"], "unet/config.json")
        vae = VaeConfig.from_dict(fields.get("vae", ARCHITECTURES["tiny"].vae), "vae/config.json")
        model = Model(
            name="golden",
            architecture="sd1",
            unet=Component(unet, tensors["unet"], "unet"),
            vae=Component(vae, tensors.get("vae", {}), "vae"),
            text_encoders=(),
            tokenizers=(),
            scheduler=fields["scheduler"],
            force_zeros_for_empty_prompt=False,
        )
        table = solver_table(None, fields["steps"], base=fields["scheduler"])
        return cls(fields, parts["inputs"], parts["outputs"], BACKENDS[backend](model, CPU, torch.float32), table)

    def row(self, context: Tensor, conditional: bool) -> RowPlan:
        """A plain row of classifier-free guidance from its embedding [L, D]."""
        guidance, unet = self.fields["guidance_scale"], self.backend.model.unet
        return RowPlan(
            conditional=conditional,
            coefficient=guidance if conditional else 1.0 - guidance,
            context=context[None],
            pooled=None,
            time_ids=None,
            kv=self.backend.cross_kv(unet, context[None]),
            time=self.backend.time_table(unet, torch.tensor(self.table.timesteps, dtype=torch.float32), None),
        )

    def track(self, rows: Sequence[RowPlan], latents: Tensor, place: int = 0) -> Track:
        """latents: [C, h, w]."""
        return Track(0, place, tuple(rows), self.table, latents, TorchNoise(torch.Generator()))

    def close(self, got: Tensor, name: str, where: Tensor | slice = slice(None)) -> None:
        """`got` is output `name`, or the part `where` of it, within the case's own tolerance."""
        wanted = self.outputs[name][where]
        assert got.shape == wanted.shape, name
        assert float((got - wanted).abs().max()) <= self.fields["accept"][name], name


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


@dataclass
class Watched:
    """A backend that remembers the model outputs [R, C, h, w] of every step."""

    backend: ReferenceBackend
    dtype: torch.dtype = torch.float32
    outputs: list[Tensor] = field(default_factory=list)
    alone = False
    runs_ahead = False
    step = ReferenceBackend.step

    def evaluate(self, rows: Rows) -> Tensor:
        self.outputs.append(self.backend.evaluate(rows))
        return self.outputs[-1]


def run(evaluator: ReferenceBackend | Watched, tracks: Sequence[Track]) -> list[list[Tensor]]:
    """The latents [C, h, w] of every track after each step."""
    seen: list[list[Tensor]] = [[] for _ in tracks]

    def observe(snapshot: StepSnapshot) -> None:
        seen[snapshot.image_index].append(snapshot.latents)

    with torch.inference_mode():
        denoise(evaluator, tracks, observe)
    for track in tracks:
        assert track.error is None
    return seen
