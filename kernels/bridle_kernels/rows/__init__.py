"""Selection and concatenation of rows and channels."""

from bridle_kernels.rows.reference import columns, concat, rows

__all__ = ["columns", "concat", "rows"]
