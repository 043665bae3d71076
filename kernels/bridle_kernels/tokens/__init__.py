"""Images as token sequences and back."""

from bridle_kernels.tokens.reference import image, tokens

__all__ = ["image", "tokens"]
