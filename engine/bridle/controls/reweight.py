"""Reweight (prompt-to-prompt, arXiv 2208.01626): columns of the text's map times a factor, after the softmax."""

from collections.abc import Sequence

import numpy as np

from bridle.controls.prompt_alignment import equalizer
from bridle.lowering import RowPlan, window_scales
from bridle.map_controls import Reweight


def lower(control: Reweight, columns: Sequence[int], rows: Sequence[RowPlan], steps: int) -> None:
    """Multiplies the columns of the rows' text maps. columns: of all the words."""
    active = window_scales(steps, control.start, control.end, 1.0) != 0.0
    if control.factor == 1.0 or not active.any():
        return
    for row in rows:
        length = row.context.shape[1]
        if row.factors is None:
            row.factors = np.ones((steps, length), np.float32)
        row.factors[active] *= equalizer(length, [(columns, control.factor)]).numpy()
