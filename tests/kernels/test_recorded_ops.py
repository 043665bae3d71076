"""Every op of the vocabulary that small networks are made of, recorded: the bits of the op called at once."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.executor import Immediate
from bridle_kernels.native_ops import NativeOps
from bridle_kernels.ops import Ops
from bridle_kernels.packed_weights import PackedWeights
from bridle_kernels.recorder import ProgramFrame, Recorder

DTYPES = [torch.float32] + [torch.bfloat16] * ("avx512_bf16" in _core.available_isas())
IDS = torch.tensor([[3, 19, 0, 4, 4, 19, 1], [5, 6, 7, 8, 9, 10, 18]])

_generator = torch.Generator()


def weight(*shape: int) -> Tensor:
    """Values that depend on the shape alone."""
    return torch.randn(shape, generator=_generator.manual_seed(sum(shape)))


@dataclass(frozen=True)
class Case:
    """run: the op on inputs of those shapes; `cast` gives weights the tested dtype. ids: token ids come first."""

    run: Callable[..., Tensor | tuple[Tensor, ...]]
    shapes: tuple[tuple[int, ...], ...]
    ids: bool = False


def perceive(ops: Ops, cast: Callable[[Tensor], Tensor], x: Tensor, latents: Tensor) -> Tensor:
    """Latents that attend to x and to themselves in one softmax."""
    to = [cast(weight(8, 8)) for _ in range(3)]
    q, k, v = ops.project_heads(latents, to, 2)
    pieces = (Piece(*ops.project_heads(x, to[1:], 2)), Piece(k, v))
    return ops.attention(q, (Segment(pieces),))


def causal(ops: Ops, cast: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    q, k, v = ops.project_heads(x, [cast(weight(8, 8)) for _ in range(3)], 2, [cast(weight(8)) for _ in range(3)])
    return ops.attention(q, (Segment((Piece(k, v),)),), causal=True)


CASES = {
    "embedding": Case(lambda o, c, i: o.embedding(i, c(weight(20, 6)), c(weight(9, 6))), (), ids=True),
    "end_token": Case(lambda o, _, i, x: o.end_token(x, i, 19), ((2, 7, 6),), ids=True),
    "end_token, the largest": Case(lambda o, _, i, x: o.end_token(x, i, None), ((2, 7, 6),), ids=True),
    "time_embedding": Case(
        lambda o, c, t: o.time_embedding(t, 10, flip_sin_to_cos=True, freq_shift=0, dtype=c(weight(1)).dtype),
        ((5,),),
    ),
    "time_embedding of several": Case(
        lambda o, c, t: o.time_embedding(t, 7, flip_sin_to_cos=False, freq_shift=1, dtype=c(weight(1)).dtype),
        ((5, 3),),
    ),
    "average_pool": Case(lambda o, _, x: o.average_pool(x), ((2, 5, 7, 9),)),
    "spatial_mean": Case(lambda o, _, x: o.spatial_mean(x), ((2, 5, 7, 9),)),
    "resize_mask": Case(lambda o, _, x: o.resize_mask(x, (3, 4)), ((2, 1, 7, 9),)),
    "pixel_unshuffle": Case(lambda o, _, x: o.pixel_unshuffle(x, 4), ((2, 3, 8, 12),)),
    "activation": Case(lambda o, _, x: o.activation(x, "tanh"), ((2, 3, 5, 7),)),
    "scale_shift": Case(lambda o, _, x: o.scale_shift(x, 0.5, 0.25), ((2, 3, 5),)),
    "concat of images": Case(lambda o, _, x, y: o.concat([x, o.columns(y, 1, 4)]), ((2, 3, 4, 5), (2, 5, 4, 5))),
    "concat of tokens and weights": Case(
        lambda o, c, x: o.concat([o.rows(c(weight(1, 2, 6)), (0, 0, 0)), x]), ((3, 4, 6),)
    ),
    "rows": Case(lambda o, _, x: o.rows(x, (2, 0, 2, 1)), ((3, 4, 5, 6),)),
    "conv2d, odd pair": Case(
        lambda o, c, x, y: o.conv2d((x, y), c(weight(6, 9, 3, 3)), c(weight(6)), activation="relu"),
        ((2, 4, 7, 5), (2, 5, 7, 5)),
    ),
    "conv2d, patches": Case(
        lambda o, c, x: o.conv2d(
            x, c(weight(6, 3, 4, 4)), stride=4, padding=0, residual=c(weight(6, 6)).view(1, 6, 2, 3)
        ),
        ((2, 3, 8, 12),),
    ),
    "conv2d, upsampled by two": Case(
        lambda o, c, x, y, r: o.conv2d(
            (x, y), c(weight(6, 9, 3, 3)), c(weight(6)), upsample=(14, 10), residual=r, activation="silu"
        ),
        ((2, 4, 7, 5), (2, 5, 7, 5), (2, 6, 14, 10)),
    ),
    "linear, odd": Case(
        lambda o, c, x, y: o.linear(x, c(weight(4, 7)), residual=y, activation="quick_gelu"), ((3, 5, 7), (1, 4))
    ),
    "group_norm, tanh": Case(
        lambda o, c, x: o.group_norm(x, c(weight(8)), c(weight(8)), 2, 1e-5, activation="tanh"), ((2, 8, 5, 3),)
    ),
    "layer_norm of a column": Case(
        lambda o, c, x: o.layer_norm(o.columns(x, 0, 1), c(weight(6)), c(weight(6)), 1e-5), ((3, 4, 6),)
    ),
    "causal attention": Case(causal, ((2, 7, 8),)),
    "attention to two pieces": Case(perceive, ((2, 9, 8), (2, 4, 8))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_replay_has_the_bits_of_the_op(dtype: torch.dtype, name: str) -> None:
    case = CASES[name]
    kind = torch.float32 if name.startswith("time") else dtype
    given = [torch.randn(shape, generator=_generator.manual_seed(i)).to(kind) for i, shape in enumerate(case.shapes)]
    inputs = [IDS, *given] if case.ids else given
    weights: dict[tuple[int, ...], Tensor] = {}

    def run(ops: Ops, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        found = case.run(ops, lambda w: weights.setdefault(tuple(w.shape), w.to(dtype)), *tensors)
        return found if isinstance(found, tuple) else (found,)

    packed, recorder = PackedWeights(), Recorder()
    wanted = run(NativeOps(Immediate(_core.ThreadPool(2)), packed), inputs)
    assert not any(tensor.isnan().any() for tensor in wanted)
    stand_ins = [recorder.input(str(i), tensor.shape, tensor.dtype) for i, tensor in enumerate(inputs)]
    program = recorder.finish(run(NativeOps(recorder, packed), stand_ins))
    for threads in (1, 2, 3, 5):
        frame = ProgramFrame(program)
        for slot, tensor in zip(frame.inputs.values(), inputs, strict=True):
            slot.copy_(tensor)
        frame.run(_core.ThreadPool(threads))
        assert all(torch.equal(one, other) for one, other in zip(frame.outputs, wanted, strict=True))


def test_ids_that_there_are_not_end_a_run() -> None:
    recorder = Recorder()
    ids = recorder.input("ids", (1, 2), torch.int64)
    ops = NativeOps(recorder, PackedWeights())
    frame = ProgramFrame(recorder.finish([ops.embedding(ids, torch.zeros(5, 4), torch.zeros(2, 4))]))
    frame.inputs["ids"].copy_(torch.tensor([[4, 5]]))
    with pytest.raises(IndexError, match="an id is 5, wants 0 to 4"):
        frame.run(_core.ThreadPool(2))
