"""The engine: a loaded model, shared by threads, without any state of a request."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm

from bridle.backends.bundled_kernels import use_kernels, use_tuning
from bridle.backends.choose import check_name, choose_backend, choose_device, choose_dtype
from bridle.backends.onnx_runtime.open_graphs import graph_dtype
from bridle.backends.onnx_runtime.options import OrtOptions
from bridle.backends.reference import ReferenceBackend
from bridle.decoding import decode_result
from bridle.errors import BridleError, RequestError
from bridle.image_prompt import ImagePrompt
from bridle.image_tracks import lower_images
from bridle.progress import showing_bars
from bridle.request import Control, ControlNet, Request, T2IAdapter
from bridle.request_checks import Prepared, Weights, prepare
from bridle.request_json import Loading
from bridle.request_loads import loads
from bridle.request_lowering import lower_controls
from bridle.result import BatchError, Result
from bridle.sampler import Observer, denoise
from bridle.text_rows import lower_text
from bridle.track import Track
from bridle.weights import (
    IPAdapter,
    holds_graphs,
    load_adapter,
    load_controlnet,
    load_graphs,
    load_ip_adapter,
    load_model,
)

POCKET = Path(__file__).parent / "assets" / "pocket"
"""The model that `load` takes without an argument, where the installation carries it."""

_MAX_REQUESTS = 256


def load(
    model: str | Path | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    variant: str | None = None,
    tokenizer: str | Path | None = None,
    prediction_type: str | None = None,
    ort: OrtOptions | None = None,
    kernels: str | Path | None = None,
    tuning: str | Path | None = None,
    deterministic: bool = False,
    memory_budget: int | None = None,
) -> "Engine":
    """Loads a model folder, a single-file checkpoint, an exported folder or a cached Hugging Face id.

    variant: "fp16" for files named `*.fp16.safetensors`. tokenizer: folder, for single files, which carry none.
    prediction_type: "epsilon" or "v_prediction", for single files, which do not say. ort: of backend "ort", which runs
    exported folders and which "auto" takes where there are graphs and no weights. kernels: folder of
    `bridle export-kernels`, for a GPU; this process then starts its kernels from there instead of compiling them. tuning:
    file of `bridle tune-kernels`, which this process then looks up. deterministic: the bits of an image do not depend on
    the images that it is made with, on any backend; images are then evaluated one after another. memory_budget: bytes of a
    GPU's memory that may be taken; what does not fit waits in the computer's memory or runs in tiles. Raises
    ModelLoadError, UnsupportedError, RequestError and MemoryBudgetError. Never touches the network.
    """
    check_name(backend)
    _check_budget(memory_budget)
    path = _default_model() if model is None else model
    chosen_device = choose_device(device)
    if kernels is not None:
        use_kernels(Path(kernels), chosen_device)
    if tuning is not None:
        use_tuning(Path(tuning))
    if backend == "ort" or holds_graphs(path):
        for field, value in (("variant", variant), ("prediction_type", prediction_type)):
            if value is not None:
                raise RequestError(field, value, "None: an exported folder has one kind of graphs")
        return _load_graphs(path, backend, chosen_device, dtype, tokenizer, ort, deterministic, memory_budget)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    loaded = load_model(
        path,
        dtype=chosen_dtype,
        device=chosen_device if memory_budget is None else torch.device("cpu"),
        variant=variant,
        tokenizer=tokenizer,
        prediction_type=prediction_type,
    )
    loading = Loading(
        model=None if model is None else str(model),
        dtype=str(chosen_dtype).removeprefix("torch."),
        variant=variant,
        tokenizer=None if tokenizer is None else str(tokenizer),
        prediction_type=prediction_type,
    )
    chosen = choose_backend(
        backend, loaded, chosen_device, chosen_dtype, ort, deterministic=deterministic, memory_budget=memory_budget
    )
    return Engine(chosen, Path(path), loading)


def _check_budget(budget: object) -> None:
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget <= 0):
        raise RequestError("memory_budget", budget, "a number of bytes above 0, or None")


def _load_graphs(
    path: str | Path,
    backend: str,
    device: torch.device,
    dtype: str | torch.dtype,
    tokenizer: str | Path | None,
    options: OrtOptions | None,
    deterministic: bool,
    memory_budget: int | None,
) -> "Engine":
    """dtype: "auto" is that of the graphs."""
    loaded = load_graphs(path, tokenizer=tokenizer)
    chosen = choose_dtype(graph_dtype(loaded.unet) if dtype == "auto" else dtype, device)
    loading = Loading(
        model=str(path),
        dtype=str(chosen).removeprefix("torch."),
        tokenizer=None if tokenizer is None else str(tokenizer),
    )
    found = choose_backend(
        backend, loaded, device, chosen, options, deterministic=deterministic, memory_budget=memory_budget
    )
    return Engine(found, Path(path), loading)


def _default_model() -> Path:
    if not (POCKET / "model_index.json").is_file():
        raise RequestError("model", None, "a folder, file or id: this installation carries no default model")
    return POCKET


class Engine:
    """Samples images. Safe to share between threads; close nothing, keep nothing per request."""

    def __init__(self, backend: ReferenceBackend, path: Path, loading: Loading | None = None) -> None:
        self.backend = backend
        self.path = path
        self.loading = loading or Loading(str(path))
        self._controls: dict[tuple[object, ...], Weights] = {}
        self._lock = threading.Lock()

    def sample(
        self,
        requests: Request | Sequence[Request],
        *,
        callback: Observer | None = None,
        progress: bool | None = None,
    ) -> "Result | list[Result]":
        """Runs one request, or a list as one batch; result i belongs to request i.

        callback: called with a StepSnapshot after each step of each image; its `cancel()` stops that image. progress:
        bars on standard error, of steps and of captures of a GPU's graphs; by default when that is a terminal and no
        callback is given. A single request raises what went wrong; a list raises BatchError after all others have
        finished, with every result in it. Bad requests raise RequestError before any work is done.
        """
        if callback is not None and not callable(callback):
            raise RequestError("callback", callback, "a function that takes a StepSnapshot")
        single = isinstance(requests, Request)
        items = _checked_requests(requests)
        prepared = [prepare(self.backend, request, self.control) for request in items]
        for size, rows, branches in loads(prepared, self.backend.alone):
            self.backend.admit(rows, size, branches)
        outcomes = self._run(prepared, callback, progress)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if single and failures:
            raise failures[0]
        if failures:
            raise BatchError(outcomes)
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        return results[0] if single else results

    def warm_up(self, requests: Request | Sequence[Request], *, progress: bool | None = None) -> None:
        """Samples requests once and forgets the results: kernels are compiled, and graphs captured, for all like them.

        Like them are requests of the same size, number of images and kinds of controls. progress and errors: as `sample`.
        """
        self.sample(requests, progress=progress)

    def control(self, control: Control) -> Weights:
        """The loaded weights of a control, kept for later requests."""
        key = _weights_key(control)
        with self._lock:
            if key not in self._controls:
                self._controls[key] = self._load(control)
            return self._controls[key]

    def _load(self, control: Control) -> Weights:
        return self.backend.place_control(self._read(control), " ".join(map(str, _weights_key(control))))

    def _read(self, control: Control) -> Weights:
        path = resolve_control(self.path, control.model, type(control))
        dtype, device, base = self.backend.dtype, self.backend.loading_device, self.backend.model
        if isinstance(control, ImagePrompt):
            return load_ip_adapter(
                path,
                dtype=dtype,
                device=device,
                base=base,
                subfolder=control.subfolder,
                weight_name=control.weight_name,
                image_encoder=control.image_encoder,
                loaded=[weights for weights in self._controls.values() if isinstance(weights, IPAdapter)],
            )
        load = load_controlnet if isinstance(control, ControlNet) else load_adapter
        return load(path, dtype=dtype, device=device, base=base)

    @torch.inference_mode()
    def _run(
        self, prepared: Sequence[Prepared], callback: Observer | None, progress: bool | None
    ) -> list[Result | Exception]:
        timings: dict[str, float] = {}
        tracks: list[Track] = []
        for index, item in enumerate(prepared):
            with _timed(timings, "text"):
                rows = lower_text(self.backend, item)
            with _timed(timings, "controls"):
                lower_controls(self.backend, item, rows)
            with _timed(timings, "images"):
                tracks.extend(lower_images(self.backend, item, rows, index))
        with _timed(timings, "denoise"), _progress_bar(tracks, callback, progress) as stepped:
            denoise(self.backend, tracks, callback, stepped)
        outcomes: list[Result | Exception] = []
        with _timed(timings, "decode"):
            for index, item in enumerate(prepared):
                own = [track for track in tracks if track.request_index == index]
                outcomes.append(decode_result(self.backend, item, own, timings, self.loading))
        return outcomes


def _weights_key(control: Control) -> tuple[object, ...]:
    """What decides which files a control's weights come from."""
    key: tuple[object, ...] = (type(control), str(control.model))
    if isinstance(control, ImagePrompt):
        return (*key, control.subfolder, control.weight_name, str(control.image_encoder))
    return key


_FOLDERS: Mapping[type[Control], tuple[str, str]] = {
    ControlNet: ("controlnet-", "controlnet/"),
    T2IAdapter: ("t2iadapter-", "t2i_adapter/"),
    ImagePrompt: ("ip-adapter-", "ip_adapter/"),
}
"""What stands before a control's name in the folder of a model, and in that of exported graphs."""


def resolve_control(model: Path, name: str | Path, kind: type[Control] = ControlNet) -> str | Path:
    """A control that the model folder holds under that name, one of its kind before others, else the path or id itself."""
    if os.path.exists(name):
        return name
    short = str(name)
    if model.is_dir() and short and "/" not in short and "\\" not in short and not short.startswith("."):
        kinds = sorted(_FOLDERS, key=lambda each: not issubclass(kind, each))
        prefixes = [prefix for each in kinds for prefix in _FOLDERS[each]]
        for folder in (*(prefix + short for prefix in prefixes), short):
            if (model / folder).is_dir():
                return model / folder
    return name


def _checked_requests(requests: object) -> list[Request]:
    if isinstance(requests, Request):
        return [requests]
    if isinstance(requests, (str, bytes)) or not isinstance(requests, Sequence):
        raise RequestError("requests", requests, "a Request or a list of them")
    items = list(requests)
    if not 1 <= len(items) <= _MAX_REQUESTS:
        raise RequestError("requests", f"{len(items)} requests", f"1 to {_MAX_REQUESTS}")
    for index, item in enumerate(items):
        if not isinstance(item, Request):
            raise RequestError(f"requests[{index}]", item, "a Request")
    return items


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - begin


@contextmanager
def _progress_bar(
    tracks: Sequence[Track], callback: Observer | None, progress: bool | None
) -> Iterator[Callable[[int], object]]:
    shown = progress if progress is not None else callback is None and sys.stderr.isatty()
    total = sum(len(track.table) for track in tracks)
    with showing_bars(shown), tqdm(total=total, disable=not shown, unit="step") as bar:
        yield bar.update


__all__ = ["BatchError", "BridleError", "Engine", "load", "resolve_control"]
