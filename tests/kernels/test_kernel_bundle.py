"""Kernels from a bundle, on a machine without a GPU: what the driver is handed, what is compiled after all, what is refused."""

import ctypes
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from residual_term import Term
from torch import Tensor

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from test_guide_step_blend import Case, arguments

import bridle
from bridle.backends.bundled_kernels import use_kernels
from bridle_exporters import kernel_bundle
from bridle_exporters.aot import Compiled
from bridle_exporters.kernel_bundle import export_kernels, write_bundle
from bridle_kernels.attention import Capture, MassShift, Piece, Segment, gpu
from bridle_kernels.cuda_driver import CudaDriver, DriverError
from bridle_kernels.geglu import triton as geglu
from bridle_kernels.guide_step_blend.triton import guide_step_blend
from bridle_kernels.kernel_bundle import SCRATCH, KernelBundle, KernelBundleError
from bridle_kernels.resample import triton as resample
from bridle_kernels.residual_add import triton as residual_kernels
from bridle_kernels.triton_kernels import variants
from bridle_kernels.triton_launch import Launch, serve_from
from bridle_kernels.triton_ops import TritonOps
from bridle_kernels.triton_variant import DTYPES

ARCH = 87


class Recorder:
    """A driver that starts nothing."""

    def __init__(self, arch: int = ARCH) -> None:
        self.arch = arch
        self.loads: list[tuple[bytes, str, int]] = []
        self.starts: list[tuple[Any, tuple[int, ...], int, int, list[Any]]] = []

    def device(self) -> int:
        return 0

    def architecture(self) -> int:
        return self.arch

    def load(self, cubin: bytes, symbol: str, shared_bytes: int) -> int:
        self.loads.append((cubin, symbol, shared_bytes))
        return len(self.loads)

    def start(self, kernel: Any, grid: Any, warps: int, shared_bytes: int, values: Any) -> None:
        self.starts.append((kernel, tuple(grid), warps, shared_bytes, [value.value for value in values]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every kernel, with its name for a cubin."""
    compiled = ((Compiled(v.name, "_symbol", ARCH, 32, 0, 1024, 9), v.name.encode()) for v in variants())
    return write_bundle(tmp_path / "bundle", ARCH, compiled).parent


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Launches that the bundle lacked."""
    found: list[Launch] = []
    monkeypatch.setattr(Launch, "compile_and_run", lambda launch: found.append(launch))
    return found


@pytest.fixture
def driver(folder: Path, compiled: list[Launch]) -> Iterator[Recorder]:
    """What records all launches of a test."""
    recorder = Recorder()
    serve_from(KernelBundle(folder, recorder))
    yield recorder
    serve_from(None)


def test_a_kernel_is_loaded_once_and_started_with_its_arguments(driver: Recorder, compiled: list[Launch]) -> None:
    halves = torch.zeros(6, 2 * 1280, dtype=torch.float16)
    outs = [geglu.gated(halves) for _ in range(2)]
    assert driver.loads == [(b"geglu_fp16", "_symbol", 1024)] and not compiled
    blocks = -(-6 * 1280 // geglu.BLOCK)
    for out, start in zip(outs, driver.starts, strict=True):
        values = [halves.data_ptr(), out.data_ptr(), 1280, 6 * 1280] + [None] * SCRATCH
        assert start == (1, (blocks,), 4, 1024, values)


@pytest.mark.parametrize(
    "halves",
    [
        torch.zeros(6, 2 * 1280, dtype=torch.float64),
        torch.zeros(6, 2 * 1281, dtype=torch.float16),
        torch.zeros(1 + 6 * 2560, dtype=torch.float16)[1:].view(6, 2560),
    ],
    ids=["dtype", "not a multiple", "not aligned"],
)
def test_what_the_bundle_lacks_is_compiled_and_said_once(
    halves: Tensor, driver: Recorder, compiled: list[Launch], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "bridle"):
        geglu.gated(halves)
        geglu.gated(halves)
    assert not driver.starts and len(compiled) == 2
    assert [record.message.split(" ")[1] for record in caplog.records] == ["geglu.triton._kernel"]


def test_on_another_device_it_is_compiled(driver: Recorder, compiled: list[Launch]) -> None:
    driver.arch = 90
    resample.upsample(torch.zeros(1, 2, 2, 320), (4, 4))
    assert len(compiled) == 1 and not driver.starts


def attention(dim: int, queries: int, keys: int, dtype: torch.dtype, **fields: Any) -> None:
    """One segment, and, of text, a second with the tokens of an image."""
    q, k = torch.zeros(2, queries, 8, dim, dtype=dtype), torch.zeros(2, keys, 8, dim, dtype=dtype)
    segments = [Segment((Piece(k, k),), **fields)]
    if keys == 77:
        segments.append(Segment((Piece(k, k), Piece(k[:, :4], k[:, :4])), torch.ones(2)))
    gpu.attention(q, segments)


def networks(dtype: torch.dtype) -> None:
    """What the networks of SD 1.5 and SDXL and their autoencoders start, on images of few pixels."""
    ops = TritonOps()
    for channels in (320, 640, 1280):
        image, one = torch.zeros(2, channels, 8, 8, dtype=dtype), torch.zeros(channels, dtype=dtype)
        ops.group_norm(image, one, one, 32, 1e-5, activation="silu")
        ops.group_norm(image, one, one, 32, 1e-6)
        two = torch.zeros(2 * channels, dtype=dtype)
        ops.group_norm((image, image), two, two, 32, 1e-5, activation="silu")
        ops.layer_norm(image.flatten(2).transpose(1, 2), one, one, 1e-5)
        ops.geglu(torch.zeros(2, 9, 16, dtype=dtype), torch.zeros(2 * channels, 16, dtype=dtype), two)
        resample.upsample(image.permute(0, 2, 3, 1).contiguous(), (16, 16))
    for channels in (128, 256, 512):
        image, one = torch.zeros(1, channels, 8, 8, dtype=dtype), torch.zeros(channels, dtype=dtype)
        ops.group_norm(image, one, one, 32, 1e-6, activation="silu")
        ops.group_norm(image, one, one, 32, 1e-6)
        resample.upsample(image.permute(0, 2, 3, 1).contiguous(), (16, 16))
    text = torch.zeros(2, 77, 12, 64, dtype=dtype)
    ops.attention(text, [Segment((Piece(text, text),))], causal=True)
    for dim in (40, 64, 80, 160):
        for tokens in (4096, 64):
            attention(dim, tokens, tokens, dtype)
        columns, window = torch.tensor([[1, 2, -1]]), torch.zeros(1, 1, 256)
        attention(dim, 256, 77, dtype, capture=Capture(columns, torch.zeros(2, 256, 3)), lse=torch.zeros(2, 8, 256))
        bias, held = torch.zeros(2, 1, 1, 77), Capture(columns, torch.zeros(2, 256, 3))
        attention(dim, 256, 77, dtype, bias=bias)
        attention(dim, 256, 77, dtype, bias=bias, capture=held)
        attention(dim, 256, 77, dtype, mass=MassShift(torch.tensor([[3]]), 0.5, window))


def residuals(channels: int, dtype: torch.dtype) -> None:
    """Of 1 to 4 ControlNets: strengths are columns of a table of 13 points, of which most are at no multiple of 16 bytes."""
    x = torch.zeros(2, channels, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    table, mask = torch.zeros(2, 13), torch.zeros(2, 1, 8, 8)
    plain = Term(torch.zeros_like(x), table[:, 5])
    some = Term(plain.values[:1], table[1:, 7], (1,), mask[:1])
    for count in range(1, residual_kernels.MOST + 1):
        for terms in ([plain] * count, [plain] * (count - 1) + [some]):
            TritonOps().residual_add(x, terms)
            TritonOps().skip_connection(x, x, terms)


SIDES = ((1, 1), (3, 16), (16, 48), (5, 9))
"""Numbers that a compiler likes to take for constants, and others."""
STEPS = [
    Case(
        samples=1 + place % 3,
        height=height,
        width=width,
        history=history,
        views=views,
        known=known,
        noise=noise,
        draws=draws,
    )
    for place, (history, draws, views, known, noise) in enumerate(
        product((0, 1, 2, 3, 6, 16), (0, 1, 2, 16), (False, True), (False, True), (False, True))
    )
    for height, width in (SIDES[place % len(SIDES)],)
]
"""Every set of features: solvers of any memory, noise of either source or both, regions and views, known regions."""


def unaligned(value: Tensor | None) -> Tensor | None:
    """The same at a place that is no multiple of 16 bytes, as a row of a table may be."""
    return None if value is None else torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)


def gradients(dim: int, keys: int, dtype: torch.dtype) -> None:
    """Of an image's attention to itself, or, where its keys are text, of its queries and a captured column."""
    q = torch.zeros(1, 256, 8, dim, dtype=dtype, requires_grad=True)
    k = torch.zeros(1, keys, 8, dim, dtype=dtype, requires_grad=keys != 77)
    maps = torch.zeros(1, 256, 1)
    capture = Capture(torch.tensor([[5]]), maps) if keys == 77 else None
    (gpu.attention(q, [Segment((Piece(k, k),), capture=capture)]).sum() + maps.sum()).backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_residuals_compile_nothing(dtype: torch.dtype, driver: Recorder, compiled: list[Launch]) -> None:
    for channels in (320, 640, 1280):
        residuals(channels, dtype)
    assert not [(launch.kernel, launch.constants) for launch in compiled]
    assert len(driver.starts) == 3 * 2 * 2 * residual_kernels.MOST
    x = torch.zeros(1, 16, 4, 4, dtype=dtype)
    TritonOps().residual_add(x, [Term(x, torch.zeros(1))] * (residual_kernels.MOST + 1))
    assert len(compiled) == 1, "the control"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_published_networks_compile_nothing(dtype: torch.dtype, driver: Recorder, compiled: list[Launch]) -> None:
    networks(dtype)
    for dim in (40, 64, 80, 160):
        gradients(dim, 256, dtype)
        gradients(dim, 77, dtype)
    assert not [(launch.kernel, launch.constants) for launch in compiled]
    assert len(driver.starts) > 40 and len(driver.loads) < len(driver.starts)
    geglu.gated(torch.zeros(1, 2))
    assert len(compiled) == 1, "the control"


def test_one_kernel_of_each_dtype_serves_every_step(driver: Recorder, compiled: list[Launch]) -> None:
    """The control: samples of another dtype, which no engine has."""
    for dtype, name in DTYPES.items():
        driver.loads.clear()
        for case in STEPS:
            given = arguments(case, 1, dtype)
            guide_step_blend(**given)
            guide_step_blend(**{argument: unaligned(value) for argument, value in given.items()})
        assert driver.loads == [(f"guide_step_blend_{name}".encode(), "_symbol", 1024)]
    assert not compiled and len(driver.starts) == 2 * len(DTYPES) * len(STEPS)
    guide_step_blend(**{**given, "latents": given["latents"].double()})
    assert len(compiled) == 1


def test_no_number_of_a_step_is_compiled_in() -> None:
    """Also where it is compiled at its first use, Triton makes one kernel of all numbers."""
    (variant, *others) = variants(["guide_step_blend.triton"])
    assert [other.constants for other in others] == [variant.constants] * 2 and list(variant.constants) == ["BLOCK"]
    numbers = {name for name, kind in variant.types.items() if kind == "i32"}
    assert {param.name for param in variant.kernel.params if param.do_not_specialize} == numbers


def changed(folder: Path, change: Callable[[Any], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refusal(folder: Path, arch: int = ARCH) -> KernelBundleError:
    with pytest.raises(KernelBundleError) as raised:
        KernelBundle(folder, Recorder(arch))
    return raised.value


def test_another_architecture_is_refused(folder: Path) -> None:
    assert "sm_87, this GPU wants sm_90" in refusal(folder, 90).problem


def test_other_sources_are_refused(folder: Path) -> None:
    changed(folder, lambda manifest: manifest["kernels"][3].update(source="0" * 64))
    assert "other sources" in refusal(folder).problem


def test_a_damaged_cubin_is_refused(folder: Path) -> None:
    (folder / "geglu_fp16.cubin").write_bytes(b"geglu_fp17")
    assert refusal(folder).file == "geglu_fp16.cubin"
    (folder / "geglu_fp16.cubin").unlink()
    assert "not readable" in refusal(folder).problem


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.clear(),
        lambda manifest: manifest["kernels"][0].pop("symbol"),
        lambda manifest: manifest["kernels"].append(7),
        lambda manifest: manifest["kernels"][0].update(name="../geglu_fp16"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(folder: Path, change: Callable[[Any], None]) -> None:
    changed(folder, change)
    assert refusal(folder).file == "manifest.json"


def test_no_manifest_is_refused(tmp_path: Path) -> None:
    assert "not readable" in refusal(tmp_path).problem
    (tmp_path / "manifest.json").write_text("[1]")
    assert "wants an object" in refusal(tmp_path).problem


def test_a_cpu_takes_no_kernels(folder: Path) -> None:
    with pytest.raises(bridle.RequestError, match="kernels"):
        bridle.load(kernels=folder, device="cpu")


def test_an_engine_refuses_by_its_own_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridle_kernels.cuda_driver.CudaDriver", lambda: Recorder(90))
    monkeypatch.setattr(torch.cuda, "device", lambda device: pytest.MonkeyPatch.context())
    with pytest.raises(bridle.ModelLoadError, match=r"manifest\.json"):
        use_kernels(folder, torch.device("cuda"))


class Library:
    """libcuda, called through C: kernel 7 of module 5. What was started is in `started`."""

    def __init__(self) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self.started: list[tuple[Any, ...]] = []
        self.shared: list[tuple[int, int, int]] = []
        out = ctypes.POINTER(pointer)
        self.cuModuleLoadData = ctypes.CFUNCTYPE(number, out, ctypes.c_char_p)(self._load)
        self.cuModuleGetFunction = ctypes.CFUNCTYPE(number, out, pointer, ctypes.c_char_p)(self._function)
        self.cuFuncSetAttribute = ctypes.CFUNCTYPE(number, pointer, number, number)(self._attribute)
        sizes = [ctypes.c_uint] * 7
        launch = ctypes.CFUNCTYPE(number, pointer, *sizes, pointer, ctypes.POINTER(pointer), pointer)
        self.cuLaunchKernel = launch(self._launch)

    def _load(self, module: Any, cubin: bytes) -> int:
        module[0] = 5
        return 0 if cubin == b"cubin" else 200

    def _function(self, function: Any, module: int, symbol: bytes) -> int:
        function[0] = 7
        return 0 if (module, symbol) == (5, b"_kernel") else 500

    def _attribute(self, *given: int) -> int:
        self.shared.append(given)
        return 0

    def _launch(self, function: int, *given: Any) -> int:
        *sizes, stream, values, _ = given
        count = ctypes.cast(values[0], ctypes.POINTER(ctypes.c_int32))[0]
        total = ctypes.cast(values[1], ctypes.POINTER(ctypes.c_int64))[0]
        scale = ctypes.cast(values[2], ctypes.POINTER(ctypes.c_float))[0]
        place = ctypes.cast(values[3], ctypes.POINTER(pointer_sized))[0]
        self.started.append((function, sizes, stream, count, total, scale, place))
        return 0


pointer_sized = ctypes.c_uint64


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setattr(CudaDriver, "stream", lambda self: 11)
    monkeypatch.setattr(CudaDriver, "_make_current", lambda self: None)
    return Library()


def test_the_driver_is_called_as_c_wants_it(library: Library) -> None:
    driver = CudaDriver(library)
    kernel = driver.load(b"cubin", "_kernel", 100 << 10)
    assert kernel.value == 7 and library.shared == [(7, 8, 100 << 10)]
    values = [ctypes.c_int32(-3), ctypes.c_int64(2**40), ctypes.c_float(0.5), ctypes.c_void_p(2**45)]
    driver.start(kernel, (6, 2), 4, 100 << 10, values)
    assert library.started == [(7, [6, 2, 1, 128, 1, 1, 100 << 10], 11, -3, 2**40, 0.5, 2**45)]
    driver.load(b"cubin", "_kernel", 48 << 10)
    assert len(library.shared) == 1, "48 KiB need no permission"


def test_what_the_driver_refuses_is_an_error(library: Library) -> None:
    with pytest.raises(DriverError, match="cuModuleLoadData failed with CUDA error 200"):
        CudaDriver(library).load(b"other", "_kernel", 0)


@pytest.mark.parametrize("changes", [{"spills": 8}, {"shared_bytes": 1 << 20}], ids=["spills", "does not fit"])
def test_a_kernel_with_a_problem_is_not_written(changes: dict[str, int], tmp_path: Path) -> None:
    bad = replace(Compiled("geglu_fp16", "_symbol", ARCH, 32, 0, 1024, 9), **changes)
    with pytest.raises(KernelBundleError, match=r"geglu_fp16\.cubin"):
        write_bundle(tmp_path, ARCH, [(bad, b"geglu_fp16")])
    assert not (tmp_path / "manifest.json").exists()


def test_a_model_gets_its_head_dimensions_and_those_of_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(kernel_bundle, "compile_all", lambda names, archs, jobs: asked.extend(names) or iter(()))
    export_kernels(tmp_path, ARCH, dims=[40], only="attention_")
    assert {"attention_self_40_fp16", "attention_gradient_keys_40_bf16", "attention_causal_64_fp32"} <= set(asked)
    assert not [name for name in asked if "40" not in name and "causal" not in name]
    asked.clear()
    export_kernels(tmp_path, ARCH, dtype=torch.float16)
    assert {"attention_self_64_fp16", "group_norm_merge", "geglu_fp16", "guide_step_blend_fp16"} <= set(asked)
    assert not [name for name in asked if name.endswith(("_bf16", "_fp32"))]
