"""The generator of random cases: mistakes of an op are seen, a seed gives its case again."""

from collections.abc import Callable

import pytest
import torch
from random_cases import Case, assert_accepted, run
from torch import Tensor


def right(x: Tensor, weight: Tensor, out: Tensor) -> None:
    out.copy_(x @ weight.T)


def last_dropped(x: Tensor, weight: Tensor, out: Tensor) -> None:
    out.copy_(x[:, :-1] @ weight[:, :-1].T)


def outputs_turned(x: Tensor, weight: Tensor, out: Tensor) -> None:
    out.copy_(x @ weight.flip(0).T)


def row_forgotten(x: Tensor, weight: Tensor, out: Tensor) -> None:
    out[:-1].copy_(x[:-1] @ weight.T)


def input_written(x: Tensor, weight: Tensor, out: Tensor) -> None:
    right(x, weight, out)
    x.zero_()


def written_behind(x: Tensor, weight: Tensor, out: Tensor) -> None:
    right(x, weight, out)
    out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(0)


def gap_read(x: Tensor, weight: Tensor, out: Tensor) -> None:
    right(x.as_strided(x.shape, (x.shape[1], 1), x.storage_offset()), weight, out)


MISTAKES = (last_dropped, outputs_turned, row_forgotten, input_written, written_behind, gap_read)


def product(op: Callable[[Tensor, Tensor, Tensor], None]) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        m, n, k = case.sides(3, 5000)
        x, weight = case.values(m, k, dtype=torch.float32), case.normal(n, k) / (1 if case.exact else 4 * k)
        out = case.output(m, n, dtype=torch.float32)
        op(case.given(x, layout="rows"), weight, out)
        exact, size = x.double() @ weight.double().T, x.abs().double() @ weight.abs().double().T
        assert_accepted(case, out, exact, size, k + 8, lambda: x @ weight.T)

    return check


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen_and_can_be_replayed(
    mistake: Callable[[Tensor, Tensor, Tensor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match=r"rule|finite") as first:
        run(product(mistake), 40)
    note = first.value.__notes__[0]
    assert "test_mistakes_are_seen" in note
    monkeypatch.setenv("BRIDLE_TEST_SEED", note.split()[0].partition("=")[2])
    with pytest.raises(AssertionError, match=r"rule|finite") as second:
        run(product(mistake), 40)
    assert second.value.__notes__ == [note]


def test_what_is_right_passes() -> None:
    run(product(right), 40)
