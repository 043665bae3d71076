"""Token embedding and the feature of the end token."""

from bridle_kernels.embedding.reference import embedding, end_token

__all__ = ["embedding", "end_token"]
