"""Segmented attention."""

from bridle_kernels.attention.reference import Piece, Segment, attention

__all__ = ["Piece", "Segment", "attention"]
