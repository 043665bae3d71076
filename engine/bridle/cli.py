"""The command line: `bridle generate`, `bridle doctor`, `bridle new-model`, `bridle export`, `bridle export-kernels`
and `bridle tune-kernels`."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import bridle
from bridle.architectures import ARCHITECTURES
from bridle.backends.choose import BACKENDS, choose_device, choose_dtype
from bridle.control_options import CONTROL_HELP, parse_control
from bridle.doctor import report
from bridle.errors import BridleError, RequestError
from bridle.export_command import export
from bridle.networks.unet import attention_sites
from bridle.new_model import write_new_model
from bridle.png_metadata import read_png
from bridle.region_options import (
    EDIT_HELP,
    IMAGE_PROMPT_HELP,
    INJECT_HELP,
    REGION_HELP,
    REWEIGHT_HELP,
    VIEWS_HELP,
    parse_attention,
    parse_image_prompt,
    parse_region,
    parse_views,
)
from bridle.request_json import Loading, request_from_json
from bridle.weights import load_model

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Controllable Stable Diffusion.")
app.command()(export)

_WITH_REPLAY = (
    *("output", "model", "tokenizer", "variant", "prediction_type", "device", "dtype", "backend"),
    *("replay", "metadata", "save_latents"),
)
"""Options that may stand beside --replay: all others would say again what the PNG says."""


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to draw; (word:1.2) weighs a word.")] = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG file; image 2 of 3 is written to NAME-2.png.")
    ] = Path("out.png"),
    model: Annotated[str | None, typer.Option(help="Model folder. Default: the model in the package.")] = None,
    negative_prompt: Annotated[str | None, typer.Option("--negative-prompt", "-n")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Once, or once per image. Default 0.")] = None,
    noise: Annotated[
        str, typer.Option(help="torch (as diffusers) or philox (counted; made where it is used)")
    ] = "torch",
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
    control: Annotated[list[str] | None, typer.Option(help=CONTROL_HELP)] = None,
    image_prompt: Annotated[list[str] | None, typer.Option(help=IMAGE_PROMPT_HELP)] = None,
    region: Annotated[list[str] | None, typer.Option(help=REGION_HELP)] = None,
    region_mode: Annotated[str, typer.Option(help="attention or latent")] = "attention",
    base_ratio: Annotated[float, typer.Option(help="The prompt's share inside regions, 0 to 1.")] = 0.2,
    bootstrapping_steps: Annotated[int, typer.Option(help="Of latent regions.")] = 20,
    views: Annotated[str | None, typer.Option(help=VIEWS_HELP)] = None,
    heatmap: Annotated[list[str] | None, typer.Option(help="A word: where it looks, in NAME-heatmap.png.")] = None,
    reweight: Annotated[list[str] | None, typer.Option(help=REWEIGHT_HELP)] = None,
    inject_map: Annotated[list[str] | None, typer.Option(help=INJECT_HELP)] = None,
    edit_of: Annotated[str | None, typer.Option(help=EDIT_HELP)] = None,
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
    prediction_type: Annotated[
        str | None, typer.Option(help="epsilon or v_prediction, for single-file checkpoints.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, " + ", ".join(BACKENDS))] = "auto",
    replay: Annotated[
        Path | None, typer.Option(help="Make the image of this PNG again; --model replaces its model.")
    ] = None,
    metadata: Annotated[bool, typer.Option(help="Write the request into the PNG.")] = True,
) -> None:
    """Makes images from a prompt and control pictures."""
    try:
        _check_targets(output, save_latents)
        own_tokenizer = None if tokenizer is None else str(tokenizer)
        loading = Loading(model, None if dtype == "auto" else dtype, variant, own_tokenizer, prediction_type)
        if replay is not None:
            request, engine = _replayed(context, replay, loading, backend, device)
        else:
            engine = _load(loading, backend, device)
            request = bridle.Request(
                prompt,
                negative_prompt=negative_prompt,
                seed=_seed(seed),
                noise=noise,
                num_images=num_images,
                width=width,
                height=height,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                scheduler=_scheduler(scheduler),
                image=image,
                strength=strength,
                mask_image=mask_image,
                controls=[
                    *(parse_control(text, engine.path) for text in control or []),
                    *(parse_image_prompt(text) for text in image_prompt or []),
                ],
                regions=[parse_region(text) for text in region or []],
                region_mode=region_mode,
                base_ratio=base_ratio,
                bootstrapping_steps=bootstrapping_steps,
                views=None if views is None else parse_views(views),
                attention=parse_attention(heatmap or [], reweight or [], inject_map or [], edit_of),
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
        for written in _write(result, target, index, metadata):
            typer.echo(f"{written}")


@app.command()
def doctor() -> None:
    """Says what this computer has and which backend serves what, and why not."""
    for line in report():
        typer.echo(line)


@app.command("new-model")
def new_model(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    arch: Annotated[str, typer.Option(help=", ".join(ARCHITECTURES))] = "tiny",
    controlnet: Annotated[bool, typer.Option("--controlnet", help="Also DIR/controlnet.")] = False,
    t2i: Annotated[bool, typer.Option("--t2i", help="Also DIR/t2i-adapter.")] = False,
    ip_adapter: Annotated[str | None, typer.Option(help="base, plus or full: also DIR/ip-adapter.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    half: Annotated[bool, typer.Option("--half", help="float16 weights.")] = False,
) -> None:
    """Writes a folder of random weights in a published architecture, for tests and benchmarks."""
    dtype = torch.float16 if half else torch.float32
    try:
        write_new_model(
            arch,
            folder,
            seed=seed,
            controlnet=controlnet,
            t2i=t2i,
            ip_adapter=ip_adapter,
            dtype=dtype,
            progress=True,
        )
    except BridleError as problem:
        typer.echo(f"bridle: {problem}", err=True)
        raise typer.Exit(2) from problem


@app.command("export-kernels")
def export_kernels(
    folder: Annotated[Path, typer.Argument(help="Where to write cubins and manifest.json.")],
    arch: Annotated[str, typer.Option(help="Such as sm_87.")],
    model: Annotated[str | None, typer.Option(help="Model folder: only the head dimensions of its U-Net.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. Default: all three.")] = None,
    only: Annotated[str, typer.Option(help="Only kernels whose name contains this.")] = "",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Compiles the GPU kernels ahead of time, without a GPU."""
    from bridle_exporters.aot import ARCHITECTURES as GPUS
    from bridle_exporters.kernel_bundle import export_kernels as export
    from bridle_kernels.kernel_bundle import KernelBundleError

    try:
        number = {f"sm_{gpu}": gpu for gpu in GPUS}.get(arch)
        if number is None:
            raise RequestError("arch", arch, "one of " + ", ".join(f"sm_{gpu}" for gpu in GPUS))
        dims = None
        if model is not None:
            dims = {site.dim for site in attention_sites(load_model(model).unet.config)}
        chosen = None if dtype is None else choose_dtype(dtype, torch.device("cuda"))
        typer.echo(f"{export(folder, number, dims, chosen, only, jobs)}")
    except (BridleError, KernelBundleError) as problem:
        typer.echo(f"bridle: {problem}", err=True)
        raise typer.Exit(2) from problem


@app.command("tune-kernels")
def tune_kernels(
    file: Annotated[Path, typer.Argument(help="JSON, for bridle.load(tuning=...).")],
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "float16",
) -> None:
    """Measures tiles of the GPU kernels on this GPU, in some minutes."""
    try:
        device = choose_device("cuda")
        wanted = choose_dtype(dtype, device)
        from bridle_kernels.attention.tune import CASES, measure
        from bridle_kernels.tuning import write

        write(file, list(measure(CASES, [wanted], device)))
        typer.echo(str(file))
    except BridleError as problem:
        typer.echo(f"bridle: {problem}", err=True)
        raise typer.Exit(2) from problem


def _write(result: bridle.Result, target: Path, index: int, metadata: bool) -> list[Path]:
    """The image, and beside it the picture of its heat maps and the image that it edits."""
    result.save(target, index, metadata)
    written = [target]
    if result.maps:
        written.append(target.with_name(f"{target.stem}-heatmap.png"))
        result.heat_map_sheet(index).save(written[-1])
    if isinstance(result.source_images, list):
        written.append(target.with_name(f"{target.stem}-source.png"))
        result.source_images[index].save(written[-1])
    return written


def _load(loading: Loading, backend: str, device: str) -> bridle.Engine:
    return bridle.load(
        loading.model,
        backend=backend,
        device=device,
        dtype=loading.dtype or "auto",
        variant=loading.variant,
        tokenizer=loading.tokenizer,
        prediction_type=loading.prediction_type,
    )


def _replayed(
    context: typer.Context, path: Path, given: Loading, backend: str, device: str
) -> tuple[bridle.Request, bridle.Engine]:
    """The request of a PNG, and its model loaded as then unless the command line says otherwise."""
    for name in context.params:
        if name not in _WITH_REPLAY and _is_given(context, name):
            raise RequestError(name, "a value", "none beside --replay, which takes it from the PNG")
    document = read_png(path)
    if document is None:
        raise RequestError("replay", path.name, "a PNG that carries a bridle request")
    request, recorded = request_from_json(document)
    if given.model is not None:
        recorded = Loading(given.model, recorded.dtype)
    chosen = {field: value for field, value in asdict(given).items() if value is not None}
    return request, _load(replace(recorded, **chosen), backend, device)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_targets(output: Path, latents: Path | None) -> None:
    """Before any work: a picture that cannot be written would be lost."""
    for field, path, suffix in (("output", output, ".png"), ("save_latents", latents, ".npy")):
        if path is not None and (path.suffix.lower() != suffix or not path.parent.is_dir() or path.is_dir()):
            raise RequestError(field, path.name, f"a {suffix} file in a folder that exists")


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


def main() -> None:
    """Entry point of the `bridle` command."""
    app()
