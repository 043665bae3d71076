"""Fills chunks of 75 tokens, as A1111 divides long prompts."""

from bridle.errors import LimitError

CHUNK = 77
MAX_CHUNKS = 64
_ROOM = CHUNK - 2
_BACKTRACK = 20
"""A chunk that ends within this many tokens after a comma is cut at the comma."""


class Chunks:
    """Takes tokens with their weights one after another; `finish` gives (ids, weights) of each chunk, without BOS and EOS."""

    def __init__(self, comma: int, field: str) -> None:
        self._comma = comma
        self._field = field
        self._ids: list[int] = []
        self._weights: list[float] = []
        self._last_comma: int | None = None
        self._done: list[tuple[list[int], list[float]]] = []

    def extend(self, ids: list[int], weight: float) -> None:
        for token in ids:
            if len(self._ids) == _ROOM and token != self._comma:
                self._cut_at_comma()
            if len(self._ids) == _ROOM:
                self.close()
            if token == self._comma:
                self._last_comma = len(self._ids)
            self._ids.append(token)
            self._weights.append(weight)

    def close(self) -> None:
        """Ends the current chunk, even an empty one."""
        if len(self._done) == MAX_CHUNKS:
            raise LimitError(self._field, "a longer prompt", f"at most {MAX_CHUNKS} chunks of {_ROOM} tokens")
        self._done.append((self._ids, self._weights))
        self._ids, self._weights, self._last_comma = [], [], None

    def finish(self) -> list[tuple[list[int], list[float]]]:
        if self._ids or not self._done:
            self.close()
        return self._done

    def _cut_at_comma(self) -> None:
        """Moves what follows a late comma into the next chunk, so that a phrase is not torn."""
        if self._last_comma is None or len(self._ids) - self._last_comma > _BACKTRACK:
            return
        cut = self._last_comma + 1
        moved = self._ids[cut:], self._weights[cut:]
        self._ids, self._weights = self._ids[:cut], self._weights[:cut]
        self.close()
        self._ids, self._weights = moved
