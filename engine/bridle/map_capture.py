"""Buffers for the maps that the rows of a batch remember in one step."""

from collections.abc import Sequence

import numpy as np
import torch

from bridle.column_room import column_room
from bridle.track import MapRecord
from bridle.uploads import upload
from bridle_kernels.attention import Capture


class MapCapture:
    """The records of one step: (batch row, record) each, with a buffer per level that all its sites add to.

    -1 fills the columns of records with fewer: other words are then the same shapes.
    """

    def __init__(self, entries: Sequence[tuple[int, MapRecord]], device: torch.device) -> None:
        self._entries = tuple(entries)
        most = column_room(max(len(record.columns) for _, record in entries))
        padded = [(*record.columns, *((-1,) * (most - len(record.columns)))) for _, record in entries]
        self._columns = np.array(padded, np.int32)
        self._device = device
        self._captures: dict[tuple[int, tuple[int, ...]], Capture] = {}

    def sites(self, count: int) -> tuple[Capture | None, ...]:
        """What each site captures. Sites of a level whose rows are the same share a capture."""
        return tuple(self._site(site) for site in range(count))

    def _site(self, site: int) -> Capture | None:
        members = tuple(i for i, (_, record) in enumerate(self._entries) if record.levels[site] is not None)
        if not members:
            return None
        first = self._entries[members[0]][1]
        level = first.levels[site]
        assert level is not None
        if (level, members) not in self._captures:
            self._captures[level, members] = self._capture(members, first.sizes[level])
        return self._captures[level, members]

    def _capture(self, members: tuple[int, ...], size: tuple[int, int]) -> Capture:
        columns = upload(self._columns[list(members)], self._device)
        rows = upload([self._entries[i][0] for i in members], self._device)
        shape = (len(members), size[0] * size[1], columns.shape[1])
        return Capture(columns=columns, out=torch.zeros(shape, device=self._device), rows=rows)

    def collect(self) -> None:
        """Adds the buffers to their records."""
        for (level, members), capture in self._captures.items():
            for place, member in enumerate(members):
                record = self._entries[member][1]
                record.add(level, capture.out[place, :, : len(record.columns)].T)
