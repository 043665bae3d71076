"""How many columns of the text's map have a place, so that few programs serve all choices of words."""

LEAST = 8
"""More columns than most words and phrases have: a choice of one token has the shape of one of eight."""


def column_room(count: int) -> int:
    """The smallest power of two from `LEAST` that has room for `count` columns; -1, which names none, fills the rest."""
    return max(LEAST, 1 << (count - 1).bit_length())
