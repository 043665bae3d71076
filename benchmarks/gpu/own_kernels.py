"""Cases of our own attention and step kernels, which part "rates" times and repeats.

`TritonOps` gives plain attention to PyTorch's fused kernel, so these call ours by its name, as a step does where a segment asks
for more. The small launches that prepare its operands are in its time, as they are in a step. Where there is no GPU the
definitions stand in.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bridle_kernels.attention import Capture, Piece, Segment, fused
from gpu.case import FLASH, OWN, Case

Attend = Callable[..., Tensor]
Step = Callable[..., tuple[Tensor, Tensor]]
Size = tuple[int, int, int, int, int]
"""Rows, queries, keys, heads and head dimension."""
FLASH_DIM = 64
SELF = [(2, 4096, 4096, 8, 40), (2, 1024, 1024, 8, 80), (2, 256, 256, 8, 160), (2, 4096, 4096, 10, FLASH_DIM),
        (2, 1024, 1024, 20, FLASH_DIM)]  # fmt: skip
TEXT = [(2, 4096, 77, 8, 40), (2, 1024, 77, 8, 80), (2, 256, 77, 8, 160), (2, 4096, 77, 10, FLASH_DIM)]
MORE = (2, 4096, 77, 8, 40)
"""Of the bias, the capture and the gradients."""
TINY = [(1, 9, 9, 2, 8), (1, 9, 9, 1, FLASH_DIM)], [(1, 9, 7, 2, 8)], (1, 9, 7, 2, 8)
STEPS = [(1, 64), (1, 128), (4, 128)]
"""Images of a batch, and the side of their latents."""
COLUMNS = 4
"""Of the captured map."""
HISTORY = 2
"""Slots of the solver's."""
ABSENT = (
    "weights",
    "noise",
    "noise_source",
    "noise_scale",
    "known",
    "known_noise",
    "known_coefficients",
    "mask",
    "has_known",
)
"""What this step is not given."""


def kernels(device: str) -> tuple[Attend, Step]:
    """What is timed on a device."""
    if device == "cuda":
        from bridle_kernels.attention import gpu
        from bridle_kernels.guide_step_blend import triton

        return gpu.attention, triton.guide_step_blend
    from bridle_kernels.attention import reference
    from bridle_kernels.guide_step_blend import reference as step_reference

    return reference.attention, step_reference.guide_step_blend


def cases(full: bool, device: str) -> Iterator[Case]:
    """Shapes of SD 1.5 at 512x512 and SDXL at 1024x1024, a pair of rows; small ones for tests. Gradients are last."""
    make = _Make(device, *kernels(device))
    own, text, more = (SELF, TEXT, MORE) if full else TINY
    for size in own:
        yield from make.with_flash(size) if size[-1] == FLASH_DIM else (make.plain(size),)
    yield from (make.plain(size) for size in text)
    yield from (make.bias(more), make.capture(more))
    yield from (make.step(*size) for size in (STEPS if full else [(2, 5)]))
    yield make.gradients(more)


class _Make:
    """Cases over random float16 tensors."""

    def __init__(self, device: str, attend: Attend, step: Step) -> None:
        self._device = device
        self._attend = attend
        self._step = step
        self._generator = torch.Generator(device).manual_seed(1)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device)

    def _operands(self, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        rows, queries, keys, heads, dim = size
        q, k, v = (self._randn(rows, count, heads, dim).half() for count in (queries, keys, keys))
        return q, k, v

    def _run(self, q: Tensor, segment: Segment) -> Callable[[], Tensor]:
        return lambda: self._attend(q, (segment,))

    def plain(self, size: Size) -> Case:
        q, k, v = self._operands(size)
        return Case(f"{OWN} {size}", self._run(q, Segment((Piece(k, v),))), _moved(q, k, v), _flops(size))

    def with_flash(self, size: Size) -> Iterator[Case]:
        """Ours, and PyTorch's own kernel on the same operands."""
        q, k, v = self._operands(size)
        yield Case(f"{OWN} {size}", self._run(q, Segment((Piece(k, v),))), _moved(q, k, v), _flops(size))
        scale = q.shape[3] ** -0.5
        yield Case(f"{FLASH} {size}", lambda: fused.attention(q, k, v, scale, False), _moved(q, k, v), _flops(size))

    def bias(self, size: Size) -> Case:
        """One bias for all rows and heads, as of a map that is injected."""
        q, k, v = self._operands(size)
        bias = self._randn(1, 1, q.shape[1], k.shape[1])
        run = self._run(q, Segment((Piece(k, v),), bias=bias))
        return Case(f"{OWN}, bias {size}", run, _moved(q, k, v) + bias.nbytes, _flops(size))

    def capture(self, size: Size) -> Case:
        """Some columns of the last row's map, the mean of its heads. The floor reads no score twice."""
        q, k, v = self._operands(size)
        columns = torch.arange(COLUMNS, dtype=torch.int32, device=self._device)[None]
        taken = torch.tensor([q.shape[0] - 1], dtype=torch.int32, device=self._device)
        heat = torch.zeros(1, q.shape[1], COLUMNS, device=self._device)
        attend = self._run(q, Segment((Piece(k, v),), capture=Capture(columns, heat, taken)))

        def run() -> Tensor:
            heat.zero_()  # captures are added to what is there
            attend()
            return heat

        return Case(f"{OWN}, capture {size}", run, _moved(q, k, v) + heat.nbytes, _flops(size))

    def gradients(self, size: Size) -> Case:
        """Forward, then dQ, dK and dV: two products and five. A copy that joins the three is in the time."""
        q, k, v = (operand.requires_grad_() for operand in self._operands(size))
        upstream = self._randn(q.shape[0], q.shape[1], q.shape[2] * q.shape[3]).half()
        segment = Segment((Piece(k, v),))

        def run() -> Tensor:
            with torch.enable_grad():
                out = self._attend(q, (segment,))
                found = torch.autograd.grad(out, (q, k, v), upstream)
            return torch.cat([gradient.flatten() for gradient in found])

        moved = _moved(q, k, v) + upstream.nbytes + q.nbytes + k.nbytes + v.nbytes
        return Case(f"{OWN}, gradients {size}", run, moved, 7 * _flops(size) // 2)

    def step(self, images: int, side: int) -> Case:
        """Guidance of two rows an image, and a solver step with a history: the next latents, which all else is summed into."""
        given = self._step_operands(images, side)
        absent = dict.fromkeys(ABSENT)
        moved = 2 * given["latents"].nbytes + sum(operand.nbytes for operand in given.values())
        flops = 2 * (4 + HISTORY) * given["latents"].numel()
        return Case(f"guide_step_blend {(images, side)}", lambda: self._step(**given, **absent)[0], moved, flops)

    def _step_operands(self, images: int, side: int) -> dict[str, Tensor]:
        rows = 2 * images

        def integers(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=self._device)

        return {
            "eps": self._randn(rows, 4, side, side).half(),
            "term_start": integers(list(range(0, rows + 1, 2))),
            "term_row": integers(list(range(rows))),
            "term_coefficient": torch.tensor([-6.5, 7.5], device=self._device).repeat(images),
            "term_weight": integers([-1] * rows),
            "term_top": integers([0] * rows),
            "term_left": integers([0] * rows),
            "latents": self._randn(images, 4, side, side),
            "history": self._randn(images, HISTORY, 4, side, side),
            "coefficients": self._randn(images, 3 + HISTORY),
        }


def _moved(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Bytes of what is read, and of the output."""
    return 2 * q.nbytes + k.nbytes + v.nbytes


def _flops(size: Size) -> int:
    """Of both products."""
    rows, queries, keys, heads, dim = size
    return 4 * rows * heads * queries * keys * dim
