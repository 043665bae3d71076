"""The wire format of protocol buffers, read without copies and with a bound on the work.

protobuf.dev/programming-guides/encoding. Messages are read one level at a time, so nothing is read that nobody asks for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

MAX_FIELDS = 2_000_000
"""Fields of one file. The graphs of SDXL have less than a tenth of them."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_WIDTHS = {_FIXED64: 8, _FIXED32: 4}

Value = int | memoryview
"""A varint as an unsigned number, anything else as its bytes."""


class WireError(ValueError):
    """Not a protocol buffer of the expected form. The text is what is wrong with it."""


@dataclass(slots=True)
class Budget:
    """What may still be read of a file."""

    fields: int = field(default=MAX_FIELDS)

    def spend(self) -> None:
        """Counts one field. Raises WireError where there are too many."""
        self.fields -= 1
        if self.fields < 0:
            raise WireError(f"has more than {MAX_FIELDS} fields")


class Message:
    """One message: its fields by number, in the order of the file. Raises WireError for anything that is not one."""

    def __init__(self, data: memoryview, budget: Budget) -> None:
        self.budget = budget
        self._values: dict[int, list[Value]] = {}
        for number, value in _fields(data, budget):
            self._values.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._values

    def messages(self, number: int) -> Iterator["Message"]:
        """A repeated field of messages."""
        for value in self._values.get(number, ()):
            yield Message(_as_bytes(value), self.budget)

    def message(self, number: int) -> "Message | None":
        """A message that may stand there once."""
        value = self._single(number)
        return None if value is None else Message(_as_bytes(value), self.budget)

    def text(self, number: int) -> str:
        """A string that may stand there once; "" without it."""
        value = self._single(number)
        return "" if value is None else _text(value)

    def texts(self, number: int) -> tuple[str, ...]:
        """A repeated string."""
        return tuple(_text(value) for value in self._values.get(number, ()))

    def size(self, number: int) -> int | None:
        """Number of bytes of a field that may stand there once, None without it."""
        value = self._single(number)
        return None if value is None else len(_as_bytes(value))

    def integer(self, number: int) -> int:
        """An int64 that may stand there once; 0 without it."""
        value = self._single(number)
        if value is None:
            return 0
        if not isinstance(value, int):
            raise WireError(f"field {number} is not a number")
        return _signed(value)

    def integers(self, number: int) -> tuple[int, ...]:
        """A repeated int64, packed or not."""
        found: list[int] = []
        for value in self._values.get(number, ()):
            if isinstance(value, int):
                found.append(_signed(value))
            else:
                found.extend(_packed(value, self.budget))
        return tuple(found)

    def _single(self, number: int) -> Value | None:
        values: Sequence[Value] = self._values.get(number, ())
        if len(values) > 1:
            raise WireError(f"field {number} stands there {len(values)} times, wants it once")
        return values[0] if values else None


def _fields(data: memoryview, budget: Budget) -> Iterator[tuple[int, Value]]:
    position, end = 0, len(data)
    while position < end:
        budget.spend()
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WireError("has a field of number 0")
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(data, position)
        elif kind in _FIXED_WIDTHS:
            length = _FIXED_WIDTHS[kind]
        else:
            raise WireError(f"has a field of wire type {kind}")
        if length > end - position:
            raise WireError("is truncated")
        yield number, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number at `position`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise WireError("is truncated")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise WireError("has a number of more than 10 bytes")


def _packed(data: memoryview, budget: Budget) -> Iterator[int]:
    position = 0
    while position < len(data):
        budget.spend()
        value, position = _varint(data, position)
        yield _signed(value)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _as_bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise WireError("has a number where a message belongs")
    return value


def _text(value: Value) -> str:
    try:
        return str(_as_bytes(value), "utf-8")
    except UnicodeDecodeError as problem:
        raise WireError("has a name that is not UTF-8") from problem
