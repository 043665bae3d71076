"""Maps that a graph gives, added to the buffers of the captures that asked for them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bridle.rows import ContextSegment
from bridle_kernels.attention import Capture


class CapturedMaps:
    """The captures of the text's maps in one evaluation.

    A graph has one choice of columns for all sites: those that any capture reads. Where V is mixed first, the map is
    the one after mixing, and all columns are read.
    """

    def __init__(self, segment: ContextSegment, width: int) -> None:
        self._mix = segment.v_mix
        captures = [terms.capture for terms in segment.sites or ()]
        self._sites = {site: capture for site, capture in enumerate(captures) if capture is not None}
        self.columns = self._columns(width)

    @property
    def outputs(self) -> Mapping[int, str]:
        """The outputs that are needed, by site."""
        return {site: f"attention_map.{site}" for site in self._sites}

    def add(self, maps: Mapping[str, Tensor]) -> None:
        """Adds the outputs [R, N, columns]: means over heads."""
        for site, name in self.outputs.items():
            values = maps[name]
            if self._mix is not None:
                values = torch.matmul(values, self._mix.to(values.dtype))
            self._add(self._sites[site], values)

    def _columns(self, width: int) -> tuple[int, ...]:
        if self._mix is not None or any(capture.columns is None for capture in self._sites.values()):
            return tuple(range(width))
        wanted: set[int] = set()
        for capture in self._sites.values():
            assert capture.columns is not None
            wanted |= set(capture.columns.flatten().tolist())
        return tuple(sorted(wanted - {-1}))

    def _add(self, capture: Capture, values: Tensor) -> None:
        rows = range(values.shape[0]) if capture.rows is None else capture.rows.tolist()
        places: Sequence[int] = range(values.shape[2]) if self._mix is not None else self.columns
        numbers = {column: place for place, column in enumerate(places)}
        for index, row in enumerate(rows):
            scale = capture.scale if not isinstance(capture.scale, Tensor) else float(capture.scale[index])
            own = places if capture.columns is None else capture.columns[min(index, len(capture.columns) - 1)].tolist()
            for target, column in enumerate(own):
                if column >= 0:
                    capture.out[index, :, target] += scale * values[row, :, numbers[column]]
