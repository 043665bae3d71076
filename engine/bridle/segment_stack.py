"""Keys and values of a batch of rows, stacked into segments."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bridle.rows import KV, ContextPiece, ContextSegment
from bridle.uploads import upload


def stack_context(rows: Sequence[tuple[KV, ...] | None]) -> ContextSegment:
    """One segment from the keys and values [1, L, H, d] of each row; a row without any has none of the segment.

    Rows that share theirs read one copy. Shorter ones are padded and get a length.
    """
    unique = {id(row): row for row in rows if row is not None}
    places = {key: place for place, key in enumerate(unique)}
    lengths = [kv[0].k.shape[1] if kv else 0 for kv in unique.values()]
    longest = max(lengths)
    stacked: dict[tuple[int, ...], KV] = {}
    sites = tuple(_stack_site(site, longest, stacked) for site in zip(*unique.values(), strict=True))
    device = sites[0].k.device if sites else None
    reads = [-1 if row is None else places[id(row)] for row in rows]
    length = None
    if min(lengths) < longest:
        length = upload([lengths[max(read, 0)] for read in reads], device)
    indices = None if reads == list(range(len(rows))) else upload(reads, device)
    return ContextSegment((ContextPiece(sites, length),), indices, indices)


def _stack_site(site: tuple[KV, ...], length: int, stacked: dict[tuple[int, ...], KV]) -> KV:
    """The keys and values of all rows at one site. stacked: what is made already, by the identity of its parts."""
    key = tuple(map(id, site))
    if key not in stacked:
        k, v = (_stack_padded(part, length) for part in ([kv.k for kv in site], [kv.v for kv in site]))
        stacked[key] = KV(k, v)
    return stacked[key]


def _stack_padded(tensors: Sequence[Tensor], length: int) -> Tensor:
    padded = [
        t if t.shape[1] == length else torch.nn.functional.pad(t, (0, 0, 0, 0, 0, length - t.shape[1])) for t in tensors
    ]
    return torch.cat(padded)
