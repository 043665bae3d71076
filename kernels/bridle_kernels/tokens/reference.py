"""The definitions in plain PyTorch."""

from torch import Tensor


def tokens(x: Tensor) -> Tensor:
    """[R, h*w, C] of [R, C, h, w], a view."""
    return x.flatten(2).transpose(1, 2)


def image(x: Tensor, size: tuple[int, int], residual: Tensor | None = None) -> Tensor:
    """[R, C, *size] of tokens [R, h*w, C], plus residual [R, C, *size]."""
    out = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size)
    # The residual comes first so that the sum takes its memory layout.
    return out if residual is None else residual + out
