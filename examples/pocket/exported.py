"""Weights of an exported pipeline as the start of another training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn


def start_from(folder: Path | None, parts: Mapping[str, nn.Module]) -> None:
    """Give every module the weights of its subfolder; without a folder all stay as they are.

    A subfolder that is not there leaves its module alone too: an earlier run may have stopped before that stage. Raises
    OSError if the folder itself is missing.
    """
    if folder is None:
        return
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} holds no exported pipeline (model_index.json)")
    for name, module in parts.items():
        if (folder / name).is_dir():
            network: Any = type(module)
            module.load_state_dict(network.from_pretrained(folder / name).float().state_dict())
