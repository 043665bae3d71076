"""Which code was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_id() -> str:
    """Short id of the commit, with "-dirty" if files differ from it; "" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    folder = Path(__file__).resolve().parent
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
