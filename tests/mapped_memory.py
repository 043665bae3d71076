"""Which files are in this process's memory, by what the kernel says of its mappings."""

import re
from collections.abc import Mapping
from pathlib import Path

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ +(/.*)")


def resident(place: Path) -> Mapping[str, int]:
    """Bytes in memory of each mapped file below a directory, by its name. A file that is mapped twice counts twice."""
    found: dict[str, int] = {}
    name = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            match = _MAPPING.fullmatch(line)
            path = None if match is None else Path(match[1])
            name = path.name if path is not None and path.is_relative_to(place) else None
        elif first == "Rss:" and name is not None:
            found[name] = found.get(name, 0) + 1024 * int(line.split()[1])
    return found
