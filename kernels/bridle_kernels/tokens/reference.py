"""The definitions in plain PyTorch."""

from torch import Tensor


def tokens(x: Tensor) -> Tensor:
    """[R, h*w, C] of [R, C, h, w], a view."""
    return x.flatten(2).transpose(1, 2)


def image(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[R, C, *size] of tokens [R, h*w, C], in PyTorch's own order of memory: what follows is faster on it."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size).contiguous()
