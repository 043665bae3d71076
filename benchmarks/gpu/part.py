"""The process of one part: `python -m gpu.part MODULE[:ARGUMENT] --lines FILE --seconds 60 --device cuda --size full`.

The module's `run(context)` yields records; each is written as one line of JSON when it comes. What a record's "problem" says
went wrong; a part that raises ends with 1.
"""

import argparse
import importlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Context:
    """argument: after the part's colon. device: "cuda", or "cpu" in tests. size: "full" or "tiny". workspace: model folders.

    deadline: of time.monotonic(), when a part should have ended by itself.
    """

    argument: str
    device: str
    size: str
    workspace: Path
    deadline: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()


def run(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """The records of a part."""
    yield from importlib.import_module(f"gpu.{name}").run(context)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--workspace", type=Path, default=Path("."))
    arguments = parser.parse_args()
    name, _, argument = arguments.name.partition(":")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(arguments.workspace / "inductor")
    deadline = time.monotonic() + arguments.seconds
    context = Context(argument, arguments.device, arguments.size, arguments.workspace, deadline)
    with arguments.lines.open("a") as lines:
        for record in run(name, context):
            lines.write(json.dumps(record) + "\n")
            lines.flush()


if __name__ == "__main__":
    main()
