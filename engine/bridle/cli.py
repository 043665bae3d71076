"""The command line: `bridle generate`, `bridle doctor` and `bridle new-model`."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import bridle
from bridle.architectures import ARCHITECTURES
from bridle.backends.choose import BACKENDS, unavailable
from bridle.engine import POCKET, resolve_control
from bridle.errors import BridleError, RequestError
from bridle.new_model import write_new_model
from bridle.png_metadata import read_png
from bridle.request import Control
from bridle.request_json import request_from_json
from bridle.weights.json_file import read_json

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Controllable Stable Diffusion.")

_CONTROL_HELP = "NAME=IMAGE, NAME a folder or a control of the model; then options: scale=0.8,start=0,end=1,mask=FILE"


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw; (word:1.2) weighs a word.")] = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG file; image 2 of 3 is written to NAME-2.png.")
    ] = Path("out.png"),
    model: Annotated[str | None, typer.Option(help="Model folder. Default: the model in the package.")] = None,
    negative_prompt: Annotated[str | None, typer.Option("--negative-prompt", "-n")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Once, or once per image. Default 0.")] = None,
    num_images: Annotated[int, typer.Option()] = 1,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    scheduler: Annotated[
        str | None, typer.Option(help='Such as "dpm++ 2m karras", a diffusers class, or its configuration as JSON.')
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Start from this picture.")] = None,
    strength: Annotated[float, typer.Option(help="How much of it to repaint, 0 to 1.")] = 1.0,
    mask_image: Annotated[Path | None, typer.Option(help="White is repainted.")] = None,
    control: Annotated[list[str] | None, typer.Option(help=_CONTROL_HELP)] = None,
    clip_skip: Annotated[int, typer.Option()] = 0,
    prompt_2: Annotated[str | None, typer.Option(help="For SDXL's second text encoder.")] = None,
    negative_prompt_2: Annotated[str | None, typer.Option()] = None,
    prompt_syntax: Annotated[str, typer.Option(help="a1111 or plain")] = "a1111",
    eta: Annotated[float, typer.Option(help="For DDIM and TCD, 0 to 1.")] = 0.0,
    depth_image: Annotated[Path | None, typer.Option(help="For depth models.")] = None,
    original_size: Annotated[tuple[int, int] | None, typer.Option(help="SDXL: height width.")] = None,
    crop: Annotated[tuple[int, int], typer.Option(help="SDXL: top left.")] = (0, 0),
    target_size: Annotated[tuple[int, int] | None, typer.Option(help="SDXL: height width.")] = None,
    negative_original_size: Annotated[tuple[int, int] | None, typer.Option(help="SDXL: height width.")] = None,
    negative_crop: Annotated[tuple[int, int] | None, typer.Option(help="SDXL: top left.")] = None,
    negative_target_size: Annotated[tuple[int, int] | None, typer.Option(help="SDXL: height width.")] = None,
    latents: Annotated[Path | None, typer.Option(help=".npy file of initial noise.")] = None,
    save_latents: Annotated[Path | None, typer.Option(help="Also write the final latents to this .npy file.")] = None,
    vae_tiling: Annotated[bool, typer.Option("--vae-tiling")] = False,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder, for single-file checkpoints.")] = None,
    variant: Annotated[str | None, typer.Option(help="fp16 for *.fp16.safetensors.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, " + ", ".join(BACKENDS))] = "auto",
    replay: Annotated[Path | None, typer.Option(help="Make the image of this PNG again; nothing else is read.")] = None,
    metadata: Annotated[bool, typer.Option(help="Write the request into the PNG.")] = True,
) -> None:
    """Makes images from a prompt and control pictures."""
    try:
        if replay is not None:
            request, path = _replayed(replay)
            engine = bridle.load(
                path, backend=backend, device=device, dtype=dtype, tokenizer=tokenizer, variant=variant
            )
        else:
            engine = bridle.load(
                model, backend=backend, device=device, dtype=dtype, tokenizer=tokenizer, variant=variant
            )
            request = bridle.Request(
                prompt,
                negative_prompt=negative_prompt,
                seed=_seed(seed),
                num_images=num_images,
                width=width,
                height=height,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                scheduler=_scheduler(scheduler),
                image=image,
                strength=strength,
                mask_image=mask_image,
                controls=[_control(text, engine.path) for text in control or []],
                clip_skip=clip_skip,
                prompt_2=prompt_2,
                negative_prompt_2=negative_prompt_2,
                prompt_syntax=prompt_syntax,
                eta=eta,
                depth_image=depth_image,
                original_size=original_size,
                crops_coords_top_left=crop,
                target_size=target_size,
                negative_original_size=negative_original_size,
                negative_crops_coords_top_left=negative_crop,
                negative_target_size=negative_target_size,
                latents=None if latents is None else _read_array(latents),
                vae_tiling=vae_tiling,
            )
        result = engine.sample(request)
    except BridleError as problem:
        typer.echo(f"bridle: {problem}", err=True)
        raise typer.Exit(2) from problem
    assert isinstance(result, bridle.Result)
    if save_latents is not None:
        np.save(save_latents, result.latents.numpy())
    for index in range(request.num_images):
        target = output if index == 0 else output.with_name(f"{output.stem}-{index + 1}{output.suffix}")
        result.save(target, index, metadata)
        typer.echo(f"{target}")


@app.command()
def doctor() -> None:
    """Says what this computer has and which backend serves what, and why not."""
    typer.echo(f"bridle {bridle.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    capability = torch.backends.cpu.get_cpu_capability()
    typer.echo(f"CPU: {capability}")
    typer.echo(f"GPU: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'PyTorch sees none'}")
    typer.echo(
        f"default model: {'in the package' if (POCKET / 'model_index.json').is_file() else 'none in this installation'}"
    )
    for name in BACKENDS:
        typer.echo(f"backend {name}: {unavailable(name) or 'available'}")


@app.command("new-model")
def new_model(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    arch: Annotated[str, typer.Option(help=", ".join(ARCHITECTURES))] = "tiny",
    controlnet: Annotated[bool, typer.Option("--controlnet", help="Also DIR/controlnet.")] = False,
    t2i: Annotated[bool, typer.Option("--t2i", help="Also DIR/t2i-adapter.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    half: Annotated[bool, typer.Option("--half", help="float16 weights.")] = False,
) -> None:
    """Writes a folder of random weights in a published architecture, for tests and benchmarks."""
    dtype = torch.float16 if half else torch.float32
    try:
        write_new_model(arch, folder, seed=seed, controlnet=controlnet, t2i=t2i, dtype=dtype, progress=True)
    except BridleError as problem:
        typer.echo(f"bridle: {problem}", err=True)
        raise typer.Exit(2) from problem


def _replayed(path: Path) -> tuple[bridle.Request, str]:
    document = read_png(path)
    if document is None:
        raise RequestError("replay", path.name, "a PNG that carries a bridle request")
    return request_from_json(document)


def _control(text: str, model: Path) -> Control:
    """A control from NAME=IMAGE[,option=value...]; its folder's class says which kind it is."""
    head, *options = text.split(",")
    name, _, picture = head.partition("=")
    if not name or not picture:
        raise RequestError("control", text, "NAME=IMAGE[,scale=0.8,start=0,end=1,mask=FILE]")
    folder = Path(resolve_control(model, name))
    kind = read_json(folder / "config.json", f"{folder.name}/config.json").get("_class_name")
    fields: dict[str, Any] = dict(_option(option) for option in options)
    if kind == "T2IAdapter":
        return bridle.T2IAdapter(name, picture, **fields)
    return bridle.ControlNet(name, picture, **fields)


def _seed(values: list[int] | None) -> int | tuple[int, ...]:
    if not values:
        return 0
    return values[0] if len(values) == 1 else tuple(values)


def _scheduler(text: str | None) -> str | dict[str, object] | None:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        config: dict[str, object] = json.loads(text)
    except ValueError as problem:
        raise RequestError("scheduler", text, "a name, or a configuration as JSON") from problem
    return config


def _read_array(path: Path) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as problem:
        raise RequestError("latents", path.name, "a .npy file of floats") from problem
    return array


def _option(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    if name == "mask":
        return name, Path(value)
    if name in ("scale", "start", "end"):
        return name, _number(name, value)
    if name == "guess_mode" and value in ("true", "false"):
        return name, value == "true"
    if name in ("resize", "guess_scales"):
        return name, value
    if name == "layer_weights":
        return name, tuple(_number(name, weight) for weight in value.split("/"))
    wants = "scale=, start=, end=, mask=, resize=, guess_mode=, guess_scales= or layer_weights=a/b/..."
    raise RequestError("control", text, wants)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as problem:
        raise RequestError(f"control {name}", text, "a number") from problem


def main() -> None:
    """Entry point of the `bridle` command."""
    app()
