"""The references of the GPU checks: what they set they give back, and the case in place of a void one can fail."""

import pytest
import torch

from device_references import plain_arithmetic

pytest.importorskip("triton", reason="Triton has wheels for Linux only")
import gpu_gradient_checks as checks

SIZE, BFLOAT16 = checks.VOID


def settings() -> tuple[bool, ...]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        matmul.allow_tf32,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        cudnn.allow_tf32,
        cudnn.benchmark,
        not cudnn.deterministic,
        not torch.are_deterministic_algorithms_enabled(),
    )


def test_plain_arithmetic_is_given_back() -> None:
    before = settings()
    with pytest.raises(RuntimeError, match="out of memory"), plain_arithmetic():
        assert not any(settings())
        raise RuntimeError("out of memory")
    assert settings() == before != (False,) * 7


def test_the_case_that_was_void_is_void_and_its_successor_sees_mistakes() -> None:
    q, segment = checks.given(SIZE, BFLOAT16, "cpu")
    peer = checks.defined(q, [segment], BFLOAT16, "cpu")
    with pytest.raises(AssertionError, match="void"):
        checks.judged(peer, q, segment)
    q, segment = checks.given(SIZE, BFLOAT16, "cpu", checks.one_sign)
    peer = checks.defined(q, [segment], BFLOAT16, "cpu", checks.one_sign)
    checks.judged(peer, q, segment, checks.one_sign)
    for place in range(3):
        wrong = [gradient.flip(2) if place == index else gradient for index, gradient in enumerate(peer)]
        with pytest.raises(AssertionError, match=r"rule [AB]"):
            checks.judged(wrong, q, segment, checks.one_sign)
    with pytest.raises(AssertionError, match="rule"):
        checks.judged([peer[0], peer[1] * 1.05, peer[2]], q, segment, checks.one_sign)
