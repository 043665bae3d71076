"""The CPU backend: the networks over the C++ core, recorded once and replayed without Python."""

from collections.abc import Hashable
from contextlib import ExitStack

import torch
from torch import Tensor

from bridle.backends import programs
from bridle.backends.cache_on_disk import packed_cache
from bridle.backends.cpu_threads import thread_pool
from bridle.backends.reference import Network, ReferenceBackend, Weights
from bridle.networks import controlnet
from bridle.networks.configs import UNetConfig
from bridle.networks.shared_start import SharedStart, shared_start, starts_alike
from bridle.rows import Branch, Residual, Residuals, Rows
from bridle.weights import Model
from bridle_kernels import _core
from bridle_kernels.attention.native import DTYPES
from bridle_kernels.executor import Immediate
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.program_cache import ProgramCache
from bridle_kernels.recorder import NotRecordableError

STEP_PROGRAMS = 8
"""Sizes of the U-Net and of ControlNets that are kept, each with the memory of its activations."""

NETWORK_PROGRAMS = 64
"""Sizes of the networks that run once for a request or an image. They never push out those that run in every step."""

LARGEST_IDLE = 16 * 2**20
"""Bytes of activations, keys and values that such a network keeps until its next run; an autoencoder's are given back."""


class CpuBackend(ReferenceBackend):
    """Serves every primitive of the reference, on CPU tensors of float32 and bfloat16. Thread-safe.

    Every network is recorded for every size and number of rows; strengths, prompts, maps, residuals and time steps are
    data. A network that no kernel serves runs op by op.
    """

    name = "cpu"

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype, *, alone: bool = False) -> None:
        self._isa = _core.active_isa()
        self._pool = thread_pool()
        self._packed = PackedWeights(self._pool, packed_cache())
        self._steps = ProgramCache(STEP_PROGRAMS)
        self._networks = ProgramCache(NETWORK_PROGRAMS, LARGEST_IDLE)
        super().__init__(model, device, dtype, NativeOps(Immediate(self._pool), self._packed), alone=alone)

    @staticmethod
    def runs_on(device: torch.device, dtype: torch.dtype) -> str | None:
        """None, or the reason why it cannot compute on a device in a dtype."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device}"
        if dtype not in DTYPES:
            return f"it computes in float32 or bfloat16, not in {str(dtype).removeprefix('torch.')}"
        try:
            _core.weight_layout(str(dtype).removeprefix("torch."))
        except ValueError:
            return f"this CPU ({_core.active_isa()}) has no instructions for products in bfloat16; use float32"
        return None

    @staticmethod
    def suits(dtype: torch.dtype) -> bool:
        """Whether this CPU has vector kernels for a dtype: "auto" takes another backend where it has not."""
        isa = _core.active_isa()
        return isa in ("avx512_bf16", "amx_bf16") if dtype == torch.bfloat16 else isa != "scalar"

    @property
    def isa(self) -> str:
        """See `ReferenceBackend.isa`."""
        return self._isa

    def evaluate(self, rows: Rows) -> Tensor:
        """Model outputs [R, C, h, w]. Raises UnsupportedError for a primitive that is not served."""
        self.refuse_unserved(rows)
        try:
            with ExitStack() as leases:
                return self._replay(rows, leases)
        except NotRecordableError:
            return super().evaluate(rows)

    def _replay(self, rows: Rows, leases: ExitStack) -> Tensor:
        model, sample = self.model.unet, tuple(rows.sample.shape)
        extra = None if rows.extra_channels is None else tuple(rows.extra_channels.shape)
        start = _start(model.config, rows)
        frame = leases.enter_context(
            self._steps.frame(
                ("unet", sample, extra, start),
                lambda: programs.record_unet(model, self._packed, self.dtype, sample, extra, start),
            )
        )
        residuals: dict[str, tuple[Residual, ...]] = dict(rows.residuals or {})
        for branch in rows.branches:
            for point, terms in self._branch(branch, rows.sample, leases).items():
                residuals[point] = residuals.get(point, ()) + terms
        frame.inputs["sample"].copy_(rows.sample)
        frame.inputs["time"].copy_(rows.time)
        if rows.extra_channels is not None:
            frame.inputs["extra_channels"].copy_(rows.extra_channels)
        programs.bind_context(frame, model.config, rows.context)
        programs.bind_residuals(frame, model.config, residuals, start)
        programs.bind_self_rows(frame, model.config, rows)
        frame.run(self._pool)
        return frame.outputs[0].clone()

    def _branch(self, branch: Branch, sample: Tensor, leases: ExitStack) -> Residuals:
        """The residuals of a branch; they are valid as long as its lease."""
        mine = controlnet.branch_sample(self.ops, branch, sample)
        shape = tuple(mine.shape)
        start = _start_of_branch(branch, mine)
        frame = leases.enter_context(
            self._steps.frame(
                ("controlnet", id(branch.weights), branch.global_pool, shape, start),
                lambda: programs.record_controlnet(branch, self._packed, self.dtype, shape, start),
            )
        )
        frame.inputs["sample"].copy_(mine)
        frame.inputs["time"].copy_(branch.time)
        frame.inputs["hint"].copy_(branch.hint)
        programs.bind_context(frame, branch.config, branch.context)
        frame.run(self._pool)
        return controlnet.named_residuals(self.ops, branch, sample, frame.outputs)

    def run_network(self, name: Hashable, weights: Weights, network: Network, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `ReferenceBackend.run_network`. These networks run rarely: their mapped weights leave the memory meanwhile."""
        key = (name, id(weights), *((tuple(tensor.shape), tensor.dtype) for tensor in inputs))
        try:
            with self._networks.frame(
                key, lambda: programs.record_network(name, weights, network, self._packed, inputs)
            ) as frame:
                for place, tensor in zip(frame.inputs.values(), inputs, strict=True):
                    place.copy_(tensor)
                frame.run(self._pool)
                self._packed.rest(frame.matrices)
                return tuple(output.clone() for output in frame.outputs)
        except NotRecordableError:
            return super().run_network(name, weights, network, *inputs)


def _start(config: UNetConfig, rows: Rows) -> SharedStart | None:
    """What a batch computes once for rows that begin alike."""
    if not starts_alike(config, rows.residuals or (), rows.self_rows):
        return None
    return shared_start([x for x in (rows.sample, rows.time, rows.extra_channels) if x is not None])


def _start_of_branch(branch: Branch, sample: Tensor) -> SharedStart | None:
    """The same for the rows of a branch."""
    return shared_start([sample, branch.time, branch.hint]) if starts_alike(branch.config, (), None) else None
