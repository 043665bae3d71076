"""Forms in which a model leaves Bridle: ONNX folders, and GPU kernels compiled ahead of time."""

from pathlib import Path
from typing import Any

__all__ = ["export"]


def export(model: str | Path, out: str | Path, **options: Any) -> None:
    """Writes a model as ONNX graphs. See `bridle_exporters.onnx_graphs.folder.export`; needs the extra `onnx`."""
    from bridle_exporters.onnx_graphs.folder import export as export_folder

    export_folder(model, out, **options)
