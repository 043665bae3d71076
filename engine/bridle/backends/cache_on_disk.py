"""Where packed weights are kept on disk, as the environment says."""

import os
from pathlib import Path

import torch

from bridle.errors import RequestError
from bridle_kernels.packed_cache import PackedCache

DIRECTORY, LIMIT = "BRIDLE_CACHE_DIR", "BRIDLE_CACHE_LIMIT"
_DEFAULT_LIMIT = 20


def packed_cache() -> PackedCache | None:
    """The cache in `BRIDLE_CACHE_DIR`, or `bridle` in the user's cache directory; None where that says "off".

    `BRIDLE_CACHE_LIMIT` is in GiB. Raises RequestError for a limit that is no number.
    """
    place = os.environ.get(DIRECTORY)
    if place == "off":
        return None
    directory = Path(place) if place else _user_cache() / "bridle"
    return PackedCache(directory / "packed", _limit(), threads=torch.get_num_threads())


def _user_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))


def _limit() -> int:
    text = os.environ.get(LIMIT) or str(_DEFAULT_LIMIT)
    try:
        limit = float(text)
        return int(limit * 2**30)
    except (ValueError, OverflowError) as problem:
        raise RequestError(LIMIT, text, "a number of GiB") from problem
