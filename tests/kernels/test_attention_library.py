"""attention: gradients, and the `torch.library` operator in traced, compiled and exported programs."""

import pytest
import torch
from attention_cases import CASES, D, H, L, N, R, cases, index, piece, rand, relative
from torch import Tensor, nn

from bridle_kernels.attention import Capture, Piece, Segment, attention, library
from bridle_kernels.attention.flat import Flat

GRADIENTS = ["mix and lengths", "mass and lengths", "mass and bias", "capture columns per head", "lse, bias, absent rows",
             "everything"]  # fmt: skip


def operator_arguments(case: str, seed: int = 0) -> tuple[object, ...]:
    """What the operator takes; every floating tensor of q, K and V wants a gradient."""
    flat = Flat.of(cases()[case])
    tensors = [
        t.requires_grad_() if t.is_floating_point() and t.ndim == 4 and t.shape[-1] == D else t for t in flat.tensors
    ]
    return rand(seed, R, N, H, D).requires_grad_(), tensors, flat.layout, flat.scalars, D**-0.5, False, False


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str) -> None:
    torch.library.opcheck(library.attention_op, operator_arguments(case))


def small(seed: int, *shape: int) -> Tensor:
    return rand(seed, *shape).requires_grad_()


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_of_the_definition(case: str) -> None:
    """Of the output and of everything that is reported, with respect to Q, K and V."""
    flat = Flat.of(cases()[case])
    chosen = [i for i, t in enumerate(flat.tensors) if t.ndim == 4 and t.shape[-1] == D and t.is_floating_point()]

    def through_operator(q: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        tensors = list(flat.tensors)
        for i, part in zip(chosen, parts, strict=True):
            tensors[i] = part
        found = library.attention_op(q, tensors, flat.layout, flat.scalars, D**-0.5, False, False)
        return tuple(torch.where(t == -torch.inf, 0.0, t) for t in found)

    inputs = (small(1, R, N, H, D), *(flat.tensors[i].detach().clone().requires_grad_() for i in chosen))
    assert torch.autograd.gradcheck(through_operator, inputs, fast_mode=True)
    with torch.no_grad():
        before = through_operator(*inputs)
    assert all(t.any() for t in before)


@pytest.mark.parametrize("case", ["capture columns", "everything"])
def test_gradients_reach_the_inputs_through_buffers(case: str) -> None:
    """In an ordinary program the captured columns carry gradients, equal to those of the operator."""
    q, segments = small(2, R, N, H, D), cases()[case]
    out = attention(q, segments)
    loss = out.sin().sum() + sum(c.out.cos().sum() for s in segments for c in s.captures)
    (direct,) = torch.autograd.grad(loss, q)
    again = cases()[case]
    out = library.attention(q, again)
    loss = out.sin().sum() + sum(c.out.cos().sum() for s in again for c in s.captures)
    (operator,) = torch.autograd.grad(loss, q)
    assert relative(operator, direct) < 1e-12


@pytest.mark.parametrize("per_head", [True, False])
def test_captured_columns_alone_carry_a_gradient(per_head: bool) -> None:
    q, out = small(8, R, N, H, D), torch.zeros(R, *([H] if per_head else []), N, 2, dtype=torch.float64)
    attention(q, [Segment((piece(9),), capture=Capture(torch.tensor([[1, 4]]), out, None, 0.5))])
    (grad,) = torch.autograd.grad(out.square().sum(), q)
    maps = (torch.einsum("rnhd,rlhd->rhnl", q, piece(9).k) * D**-0.5).softmax(-1)[..., [1, 4]]
    maps = maps if per_head else maps.mean(1)
    (wanted,) = torch.autograd.grad((0.5 * maps).square().sum(), q)
    assert relative(grad, wanted) < 1e-12


def guided(q: Tensor, k: Tensor, v: Tensor, length: Tensor, columns: Tensor, out: Tensor) -> Tensor:
    """A program that uses the op: two segments, a capture, a gate."""
    first = Segment((Piece(k, v, length),), 0.5, capture=Capture(columns, out, None, torch.tensor([1.0, 2.0])))
    second = Segment((Piece(k, v),), k_rows=torch.tensor([1, -1]), v_rows=torch.tensor([0, 1]))
    return 2.0 * attention(q.sin(), (first, second), gate=0.5) + 1.0


class Program(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, length: Tensor, columns: Tensor, out: Tensor) -> Tensor:
        return guided(q, k, v, length, columns, out)


def program_arguments(queries: int = 11) -> tuple[Tensor, ...]:
    q, k, v = rand(3, 2, queries, H, D), rand(4, 2, L, H, D), rand(5, 2, L, H, D)
    return q, k, v, index(7, 3), torch.tensor([[1, 2], [4, 0]]), torch.zeros(2, queries, 2, dtype=torch.float64)


def test_compiles_without_a_graph_break() -> None:
    wanted, given = program_arguments(), program_arguments()
    result = guided(*wanted)
    compiled = torch.compile(guided, backend="eager", fullgraph=True)
    assert relative(compiled(*given), result) < 1e-12
    assert relative(given[-1], wanted[-1]) < 1e-12


def test_gradients_of_a_compiled_program() -> None:
    wanted, given = program_arguments(), program_arguments()
    for arguments, function in ((wanted, guided), (given, torch.compile(guided, backend="aot_eager", fullgraph=True))):
        for tensor in arguments[:3]:
            tensor.requires_grad_()
        (function(*arguments).square().sum() + arguments[-1].square().sum()).backward()
    for one, other in zip(wanted[:3], given[:3], strict=True):
        assert one.grad is not None and other.grad is not None and relative(other.grad, one.grad) < 1e-12


@pytest.mark.parametrize("strict", [False, True])
def test_exports_as_one_operator(strict: bool) -> None:
    queries = torch.export.Dim("queries", min=2, max=64)
    shapes = ({1: queries}, None, None, None, None, {1: queries})
    exported = torch.export.export(Program(), program_arguments(), dynamic_shapes=shapes, strict=strict)
    calls = [node for node in exported.graph.nodes if node.target == torch.ops.bridle.attention.default]
    assert len(calls) == 1
    wanted, given = program_arguments(23), program_arguments(23)
    result = guided(*wanted)
    assert relative(exported.module()(*given), result) < 1e-12
    assert relative(given[-1], wanted[-1]) < 1e-12


def test_causal_and_float32_scores_reach_the_operator() -> None:
    q, whole = rand(6, R, L, H, D).half(), piece(7)
    segments = [Segment((Piece(whole.k.half(), whole.v.half()),))]
    for options in ({"causal": True}, {"float32_scores": True, "scale": 0.3}, {"gate": 0.0}):
        assert torch.equal(library.attention(q, segments, **options), attention(q, segments, **options))
