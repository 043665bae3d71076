"""`bridle export`: a model as ONNX graphs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from bridle.errors import BridleError, UnsupportedError


def export(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    model: Annotated[str, typer.Option(help="Model folder.")],
    control: Annotated[
        list[str] | None, typer.Option(help="ControlNet, T2I-Adapter or IP-Adapter to export with it; may be repeated.")
    ] = None,
    features: Annotated[str, typer.Option(help="Optional inputs of the U-Net: residuals,regions,maps")] = "",
    precision: Annotated[str, typer.Option(help="fp32 or fp16")] = "fp32",
    opset: Annotated[int, typer.Option(help="Of ONNX.")] = 23,
) -> None:
    """Writes a model as ONNX graphs that other programs load."""
    try:
        if find_spec("onnx") is None or find_spec("bridle_exporters") is None:
            raise UnsupportedError("export", "onnx", "the package onnx is missing: pip install 'bridle[onnx]'")
        from bridle_exporters import export as write

        chosen = [feature for feature in features.split(",") if feature]
        write(model, out, controls=control or [], features=chosen, precision=precision, opset=opset, progress=True)
    except BridleError as problem:
        typer.echo(f"bridle: {problem}", err=True)
        raise typer.Exit(2) from problem
    typer.echo(f"{out}")
