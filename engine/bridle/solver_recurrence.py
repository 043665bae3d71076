"""Reduces the rows that `solver_probe` reads to a recurrence over a few earlier samples and model outputs."""

import numpy as np
from numpy.typing import NDArray

from bridle.errors import RequestError
from bridle.solver_probe import DRAWS_PER_STEP, Array

_SHORT_HISTORY = 4
_LONG_HISTORY = 16


def recurrence(raw: Array, name: str) -> tuple[Array, Array, Array]:
    """Coefficients over samples [S, Kx], outputs [S, Km] and draws [S, 2], newest first.

    raw: [S, 4 S] as `Probe.rows`. name: the scheduler, for the error if its steps reach further back than 16.

    A scheduler that keeps a corrected sample of its own (UniPC) or reuses an earlier draw (DPM++ SDE) reads back a
    row that reaches far into the past. The previous step's row, `x_i - raw[i-1] = 0`, reaches there in the same
    direction, so a multiple of it cancels the past exactly.
    """
    rows = raw.copy()
    longest = 1
    for i in range(len(raw)):
        if i > 0 and not _is_short(rows[i], i, _SHORT_HISTORY):
            rows[i] = _cancelled(raw, i)
        if not _is_short(rows[i], i, _SHORT_HISTORY):
            rows[i] = raw[i]
        if not _is_short(rows[i], i, _LONG_HISTORY):
            raise RequestError("scheduler", name, f"a step over at most {_LONG_HISTORY} earlier samples and outputs")
        longest = max(longest, _history(rows[i], i))
    return _by_lag(rows, longest)


def _cancelled(raw: Array, i: int) -> Array:
    current: Array = raw[i]
    previous = -raw[i - 1]
    previous[i] += 1.0
    past = _past(len(raw), i, _SHORT_HISTORY)
    old, old_previous = current[past], previous[past]
    norm = float(old_previous @ old_previous)
    if norm == 0.0:
        return current
    row: Array = current - (float(old @ old_previous) / norm) * previous
    row[past] = np.where(np.abs(row[past]) <= 1e-9 * max(1.0, float(np.abs(current).max())), 0.0, row[past])
    return row


def _past(steps: int, i: int, history: int) -> NDArray[np.bool_]:
    """[4 S]: the coordinates that row i may not use: older samples and outputs, and the draws of other steps."""
    past = np.zeros((2 + DRAWS_PER_STEP) * steps, dtype=bool)
    oldest = max(0, i - history + 1)
    past[:oldest] = True
    past[steps : steps + oldest] = True
    past[2 * steps : 2 * steps + DRAWS_PER_STEP * i] = True
    return past


def _is_short(row: Array, i: int, history: int) -> bool:
    return not bool(row[_past(len(row) // (2 + DRAWS_PER_STEP), i, history)].any())


def _history(row: Array, i: int) -> int:
    steps = len(row) // (2 + DRAWS_PER_STEP)
    used = np.flatnonzero(row[: i + 1].astype(bool) | row[steps : steps + i + 1].astype(bool))
    return i + 1 - int(used[0]) if len(used) else 1


def _by_lag(rows: Array, history: int) -> tuple[Array, Array, Array]:
    """The rows rewritten by age; ages that no row uses are cut off."""
    steps = len(rows)
    samples, outputs = np.zeros((steps, history)), np.zeros((steps, history))
    noises = np.zeros((steps, DRAWS_PER_STEP))
    for i in range(steps):
        lags = min(history, i + 1)
        samples[i, :lags] = rows[i, i - np.arange(lags)]
        outputs[i, :lags] = rows[i, steps + i - np.arange(lags)]
        noises[i] = rows[i, 2 * steps + DRAWS_PER_STEP * i :][:DRAWS_PER_STEP]
    return _trimmed(samples), _trimmed(outputs), noises


def _trimmed(coefficients: Array) -> Array:
    used = np.flatnonzero(coefficients.any(axis=0))
    return coefficients[:, : max(1, int(used[-1]) + 1 if len(used) else 1)]
