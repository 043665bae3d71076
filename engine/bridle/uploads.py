"""Small values that the host decides on and a device reads, sent without waiting for the device."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROW_BYTES = 16
"""What kernels are compiled for: memory that begins elsewhere would be copied first."""


def upload(values: NDArray[np.generic] | Sequence[int], device: torch.device | None) -> Tensor:
    """The values on `device`, in their own dtype; a sequence of int becomes int32.

    The copy is queued behind the work that the device still has, and the host goes on. That is safe for memory that is not
    pinned: it is read before this returns.
    """
    array = values if isinstance(values, np.ndarray) else np.asarray(values, np.int32)
    return sent(torch.from_numpy(np.ascontiguousarray(array)), device)


def upload_rows(table: NDArray[np.generic], device: torch.device | None) -> Tensor:
    """[S, ...]: a table of which a step reads one row. Rows are contiguous and begin at multiples of `ROW_BYTES`."""
    rows = table.reshape(len(table), -1)
    unit = ROW_BYTES // table.itemsize
    padded = np.zeros((len(rows), -(-rows.shape[1] // unit) * unit), table.dtype)
    padded[:, : rows.shape[1]] = rows
    return upload(padded, device)[:, : rows.shape[1]].view(table.shape)


def sent(tensor: Tensor, device: torch.device | None) -> Tensor:
    """A CPU tensor on `device`, see `upload`."""
    return tensor if device is None else tensor.to(device, non_blocking=True)


class Constants:
    """Uploads of values that come again: each is sent once. Holds at most `most`."""

    def __init__(self, device: torch.device, most: int = 256) -> None:
        self._device = device
        self._most = most
        self._sent: dict[tuple[bytes, str, tuple[int, ...]], Tensor] = {}

    def upload(self, values: NDArray[np.generic]) -> Tensor:
        """The values on the device; nobody may change them."""
        key = (values.tobytes(), values.dtype.str, values.shape)
        if key not in self._sent:
            while len(self._sent) >= self._most:
                self._sent.pop(next(iter(self._sent)))
            self._sent[key] = upload(values, self._device)
        return self._sent[key]
