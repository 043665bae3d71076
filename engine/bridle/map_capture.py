"""Buffers for the maps that the rows of a batch remember in one step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.track import MapRecord
from bridle_kernels.attention import Capture


class MapCapture:
    """The records of one step: (batch row, record) each, with a buffer per level that all its sites add to."""

    def __init__(self, entries: Sequence[tuple[int, MapRecord]], device: torch.device) -> None:
        self._entries = tuple(entries)
        most = max(len(record.columns) for _, record in entries)
        padded = [(*record.columns, *((-1,) * (most - len(record.columns)))) for _, record in entries]
        self._columns = torch.tensor(padded, dtype=torch.int32, device=device)
        self._buffers: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def sites(self, count: int) -> tuple[Capture | None, ...]:
        """What each site captures."""
        return tuple(self._site(site) for site in range(count))

    def _site(self, site: int) -> Capture | None:
        members = tuple(i for i, (_, record) in enumerate(self._entries) if record.levels[site] is not None)
        if not members:
            return None
        first = self._entries[members[0]][1]
        level = first.levels[site]
        assert level is not None
        chosen = self._columns[list(members)]
        if (level, members) not in self._buffers:
            height, width = first.sizes[level]
            shape = (len(members), height * width, chosen.shape[1])
            self._buffers[level, members] = torch.zeros(shape, device=chosen.device)
        rows = torch.tensor([self._entries[i][0] for i in members], dtype=torch.int32, device=chosen.device)
        return Capture(columns=chosen, out=self._buffers[level, members], rows=rows)

    def collect(self) -> None:
        """Adds the buffers to their records."""
        for place, (_, record) in enumerate(self._entries):
            maps: dict[int, Tensor] = {}
            for (level, members), buffer in self._buffers.items():
                if place in members:
                    own = buffer[members.index(place), :, : len(record.columns)].T
                    maps[level] = maps[level] + own if level in maps else own
            record.add(maps)
