"""Output rows that read a segment alike. Rows with other lengths or without the segment do not share their work."""

from dataclasses import dataclass

from torch import Tensor

from bridle_kernels.attention.segment import Segment


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of a batch of `count`, and how many keys of each piece they read."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    count: int

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows of the batch."""
        return len(self.rows) == self.count

    def split(self) -> "list[RowGroup]":
        """Every row on its own. Matrix products over several rows round by where in memory a row begins."""
        return [RowGroup((row,), self.lengths, self.count) for row in self.rows]


def row_groups(segment: Segment, rows: int) -> list[RowGroup]:
    """Groups of equal lengths, in the order of their first rows. Rows to which the segment adds nothing are in none.

    Work per row then depends on the row's own lengths only, never on how far its neighbours made the batch pad.
    """
    lengths = _lengths(segment, rows)
    absent = _absent(segment, rows)
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in range(rows):
        if row not in absent and any(lengths[row]):
            groups.setdefault(lengths[row], []).append(row)
    return [RowGroup(tuple(members), key, rows) for key, members in groups.items()]


def _lengths(segment: Segment, rows: int) -> list[tuple[int, ...]]:
    columns = [[piece.k.shape[1]] * rows if piece.length is None else piece.length.tolist() for piece in segment.pieces]
    return list(zip(*columns, strict=True))


def _absent(segment: Segment, rows: int) -> set[int]:
    """Rows without K, without V, or with a weight of 0 where nothing but the output is asked for."""
    hidden = [source < 0 for source in (segment.k_rows, segment.v_rows) if source is not None]
    if not segment.reads_map:
        if isinstance(segment.weight, Tensor):
            hidden.append((segment.weight == 0.0).view(rows, -1).all(1))
        elif segment.weight == 0.0:
            return set(range(rows))
    return {row for mask in hidden for row in mask.nonzero()[:, 0].tolist()}
