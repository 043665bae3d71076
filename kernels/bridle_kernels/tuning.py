"""Autotuning is data: a launch looks up what was measured before, and takes the rule of its kernel where nothing was.

Nothing is ever measured here. An entry holds for one op, bucket of shapes, dtype, device, versions of Triton and PyTorch, and
kernel source; what was measured for another is not found.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton

from bridle_kernels.triton_variant import kernel_hash

FORMAT = 2
ROUNDS = 5
"""Measurements of each choice, taken in turns."""
MARGIN = 0.02
"""Share by which a choice has to be faster than the rule: less is noise."""
Choice = Mapping[str, int]


class TuningError(ValueError):
    """A file of tuning results cannot be used. problem: what it has and what is wanted."""

    def __init__(self, file: str, problem: str) -> None:
        self.file = file
        self.problem = problem
        super().__init__(f"{file}: {problem}")


@dataclass(frozen=True, slots=True)
class Entry:
    """The fastest choice for one bucket. bucket: such as "dim=40 keys=many". kernel: hash of its source. microseconds:
    measured of it; rule_microseconds: of the rule."""

    op: str
    bucket: str
    dtype: str
    device: str
    triton: str
    torch: str
    kernel: str
    choice: Choice
    microseconds: float
    rule_microseconds: float

    @property
    def key(self) -> tuple[str, ...]:
        """What a lookup has to agree on."""
        return self.op, self.bucket, self.dtype, self.device, self.triton, self.torch, self.kernel


_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("op", "bucket", "dtype", "device", "triton", "torch", "kernel"), str),
    **dict.fromkeys(("microseconds", "rule_microseconds"), (int, float)),
    "choice": dict,
}
_table: dict[tuple[str, ...], Choice] = {}


def use(entries: Iterable[Entry]) -> None:
    """What launches of this process look up from now on."""
    found = {entry.key: entry.choice for entry in entries}
    _table.clear()
    _table.update(found)


def lookup(op: str, bucket: str, dtype: str, device: torch.device, kernel: Any) -> Choice:
    """The measured choice, empty where there is none."""
    if not _table:
        return {}
    return _table.get((op, bucket, dtype, device_name(device), *versions(), kernel_hash(kernel)), {})


def versions() -> tuple[str, str]:
    """Of Triton, and of PyTorch, which brings the libraries that a kernel is measured with."""
    return triton.__version__, str(torch.__version__)


@lru_cache(maxsize=16)
def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H200"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Writes results as JSON, one entry a line."""
    lines = ",\n".join(json.dumps(asdict(entry), sort_keys=True) for entry in entries)
    path.write_text(f'{{"format": {FORMAT}, "entries": [\n{lines}\n]}}\n', encoding="utf-8")


def read(path: Path) -> list[Entry]:
    """Results from a file of `write`. Raises TuningError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise TuningError(path.name, f"is not readable: {type(problem).__name__}") from problem
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("entries"), list):
        raise TuningError(path.name, f"wants format {FORMAT} and a list of entries")
    return [_entry(path, row) for row in found["entries"]]


def _entry(path: Path, row: Any) -> Entry:
    if not isinstance(row, dict) or set(row) != set(_FIELDS):
        raise TuningError(path.name, f"an entry wants the fields {', '.join(_FIELDS)}")
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(row[name], kind)]
    if wrong or not all(isinstance(n, int) and n > 0 for n in row["choice"].values()):
        raise TuningError(path.name, f"{', '.join(wrong) or 'choice'}: has a value of another type")
    return Entry(**row)


def fastest(rule: Choice, choices: Iterable[Choice], timer: Callable[[Choice], float]) -> tuple[Choice, float, float]:
    """The fastest choice, its time and that of the rule, medians in microseconds; the rule unless another beats it clearly.

    timer: measures a choice; raises RuntimeError for one that cannot run or computes something else, which is left out.
    """
    known = [rule, *(choice for choice in choices if choice != rule)]
    times: dict[int, list[float]] = {index: [] for index in range(len(known))}
    for _ in range(ROUNDS):
        for index in list(times):
            try:
                times[index].append(timer(known[index]))
            except RuntimeError:
                del times[index]
    if 0 not in times:
        raise RuntimeError("the rule itself cannot run")
    medians = {index: median(values) for index, values in times.items()}
    best = min(medians, key=lambda index: (medians[index], index))
    best = best if medians[best] < medians[0] * (1.0 - MARGIN) else 0
    return known[best], medians[best], medians[0]
