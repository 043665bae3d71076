"""One hash for all weights of a model folder, so that scores and weights cannot be mixed up."""

from __future__ import annotations

import hashlib
from pathlib import Path


def weights_hash(folder: Path) -> str:
    """SHA-256 over names and bytes of all safetensors files below a folder, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(file.read_bytes())
    return digest.hexdigest()
