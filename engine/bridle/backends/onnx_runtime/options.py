"""How ONNX Runtime is to run: its provider, threads and caches."""

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bridle.errors import RequestError, UnsupportedError

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Our names -> ONNX Runtime's."""

_MAX_THREADS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtOptions:
    """Options of the backend `ort`.

    provider: "cpu", "cuda" or "tensorrt"; "auto" is "cuda" where the device is a GPU, else "cpu". settings: the
    provider's own options by ONNX Runtime's names, such as `gpu_mem_limit` or `trt_profile_max_shapes`; they replace
    Bridle's. threads: of the CPU, 1 to 1024; None is as many as PyTorch uses. spinning: they wait awake for some
    milliseconds after each run; else they sleep at once. shared_pool: all graphs of the process use one pool of threads,
    which always spin, and whose size is that of its first user. ONNX Runtime then refuses sessions of other code in this
    process that bring threads of their own. cache: folder of TensorRT's engines and timings, None is
    `~/.cache/bridle/onnxruntime`. Raises RequestError.
    """

    provider: str = "auto"
    settings: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    spinning: bool = False
    shared_pool: bool = False
    cache: str | Path | None = None

    def __post_init__(self) -> None:
        if self.provider not in ("auto", *PROVIDERS):
            raise RequestError("OrtOptions.provider", self.provider, "'auto', 'cpu', 'cuda' or 'tensorrt'")
        threads = self.threads
        if threads is not None and (
            not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= _MAX_THREADS
        ):
            raise RequestError("OrtOptions.threads", threads, f"None or 1 to {_MAX_THREADS}")
        for name in ("spinning", "shared_pool"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"OrtOptions.{name}", getattr(self, name), "True or False")
        if not isinstance(self.settings, Mapping) or not all(
            isinstance(text, str) for item in self.settings.items() for text in item
        ):
            raise RequestError("OrtOptions.settings", self.settings, "names and values as strings")

    def provider_on(self, device: torch.device) -> str:
        """The provider, by our name. Raises RequestError where it does not suit the device, UnsupportedError without it."""
        name = self.provider if self.provider != "auto" else "cuda" if device.type == "cuda" else "cpu"
        if (name == "cpu") != (device.type == "cpu"):
            raise RequestError("OrtOptions.provider", name, f"one that runs on the device {device}")
        if PROVIDERS[name] not in available_providers():
            raise UnsupportedError(f"the provider '{name}'", "ort", f"ONNX Runtime here has {listed_providers()}")
        return name

    def provider_list(self, name: str, device: torch.device, graph: str) -> list[tuple[str, dict[str, str]]]:
        """What a session is made with, the first one first. graph: its name among the engines in the cache."""
        settings = dict(self.settings)
        if name == "cpu":
            return [(PROVIDERS["cpu"], settings)]
        place = {"device_id": str(device.index or 0)}
        if name == "cuda":
            return [(PROVIDERS["cuda"], place | settings), (PROVIDERS["cpu"], {})]
        folder = str(self.engine_folder(device) / graph)
        ours = {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": folder,
        }
        return [(PROVIDERS["tensorrt"], place | ours | settings), (PROVIDERS["cuda"], place), (PROVIDERS["cpu"], {})]

    def engine_folder(self, device: torch.device) -> Path:
        """Where TensorRT's engines and timings are kept.

        Engines of other versions or another GPU do not load, so these are in its path.
        """
        root = Path.home() / ".cache" / "bridle" / "onnxruntime" if self.cache is None else Path(self.cache)
        versions = f"ort-{ort_version()}_tensorrt-{_version('tensorrt')}_cuda-{torch.version.cuda}"
        return root / f"{versions}_{_gpu_name(device)}"


def unavailable() -> str | None:
    """None, or why ONNX Runtime cannot be used here."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install 'bridle[ort]' or 'bridle[ort-gpu]'"
    return None


def available_providers() -> tuple[str, ...]:
    """Those of the installed ONNX Runtime, by its names."""
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def ort_version() -> str:
    """Of the installed ONNX Runtime."""
    import onnxruntime

    return str(onnxruntime.__version__)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "system"


def _gpu_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device)
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def listed_providers() -> str:
    """Those of the installed ONNX Runtime that Bridle uses, for a person to read."""
    names = {theirs: ours for ours, theirs in PROVIDERS.items()}
    return ", ".join(repr(names[p]) for p in available_providers() if p in names)
