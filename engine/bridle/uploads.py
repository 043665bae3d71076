"""Small values that the host decides on and a device reads, sent without waiting for the device."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: NDArray[np.generic] | Sequence[int], device: torch.device | None) -> Tensor:
    """The values on `device`, in their own dtype; a sequence of int becomes int32.

    The copy is queued behind the work that the device still has, and the host goes on. That is safe for memory that is not
    pinned: it is read before this returns.
    """
    array = values if isinstance(values, np.ndarray) else np.asarray(values, np.int32)
    return sent(torch.from_numpy(np.ascontiguousarray(array)), device)


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
