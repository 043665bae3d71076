"""Pipelines of 20 steps through exported graphs equal the reference; what graphs cannot do is refused by name."""

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from control_cases import CONTROLS, Changes, asked, distance
from runs import half_mask, picture

import bridle
from bridle.backends import ort
from bridle.backends.choose import unserved
from bridle.backends.onnx_runtime import session
from bridle.backends.onnx_runtime.context_feeds import stand_ins
from bridle.backends.onnx_runtime.graph_file import GraphFile, read_graph
from bridle.backends.onnx_runtime.open_graphs import Opener
from bridle.backends.onnx_runtime.options import ort_version
from bridle.errors import ModelLoadError, RequestError, UnsupportedError
from bridle.rows import Primitive
from bridle_exporters import export

NET = bridle.ControlNet("controlnet", picture(1), scale=0.8)
LONG = " ".join(["a red circle left of a blue square"] * 12)

CASES: dict[str, Changes] = {
    "text-to-image": {},
    "a prompt of two chunks": {"prompt": LONG},
    "clip skip": {"clip_skip": 1},
    **{
        name: CONTROLS[name]
        for name in (
            "ControlNet",
            "T2IAdapter",
            "ImagePrompt",
            "image-to-image",
            "inpainting",
            "CaptureMaps",
            "Reweight",
            "InjectMap bias",
            "attention regions",
            "latent regions",
            "Views",
        )
    },
    "two ControlNets": {
        "controls": [NET, bridle.ControlNet("controlnet", picture(5), mask=half_mask(64), guess_mode=True, end=0.6)]
    },
    "ControlNet on two chunks": {"prompt": LONG, "controls": [NET]},
    "masked image prompts": {
        "controls": [bridle.ImagePrompt("ip-adapter", [picture(3), picture(6)], mask=[half_mask(64), ~half_mask(64)])]
    },
    "regions with an image prompt and a bias": {**CONTROLS["attention regions"], **CONTROLS["InjectMap bias"]},
    "reweighted maps": {"attention": [bridle.Reweight("circle", 4.0), bridle.CaptureMaps(["circle", "blue square"])]},
}

UNSERVED: dict[str, tuple[Changes, str]] = {
    "PromptEdit": (CONTROLS["PromptEdit"], "P"),
    "InjectMap mass": (CONTROLS["InjectMap mass"], "P9 column mass"),
}

ORT_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")

NEEDS: dict[str, str] = {
    "ControlNet": "'residuals'",
    "attention regions": "'regions'",
    "InjectMap bias": "'regions'",
    "CaptureMaps": "'maps'",
}
"""The feature that a folder has to be exported with."""


def run(engine: bridle.Engine, changes: Changes) -> bridle.Result:
    result = engine.sample(asked({"num_inference_steps": 20}, changes))
    assert isinstance(result, bridle.Result)
    return result


@pytest.fixture(scope="module")
def plain_engine(plain: Path) -> bridle.Engine:
    return bridle.load(plain, backend="ort")


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, engine: bridle.Engine, reference: bridle.Engine) -> None:
    ours, theirs = run(engine, CASES[name]), run(reference, CASES[name])
    assert distance(ours, theirs) < 1e-3
    if theirs.maps is not None:
        for word, wanted in theirs.maps.items():
            torch.testing.assert_close(torch.as_tensor(ours.maps[word]), torch.as_tensor(wanted), rtol=1e-3, atol=1e-4)


def test_controls_change_the_image(engine: bridle.Engine) -> None:
    """The control of the comparison above: controls that did nothing on either side would be equal too."""
    plain = run(engine, {})
    for name in set(CASES) - {"text-to-image", "CaptureMaps"}:
        assert distance(run(engine, {"num_inference_steps": 3, **CASES[name]}), plain) > 1e-3, name


def test_list_equals_single_requests(engine: bridle.Engine) -> None:
    requests = [
        asked(CASES[name]) for name in ("text-to-image", "ControlNet", "attention regions", "a prompt of two chunks")
    ]
    for together, request in zip(engine.sample(requests), requests, strict=True):
        assert distance(together, engine.sample(request)) < 1e-4


@pytest.mark.parametrize("name", UNSERVED)
def test_unserved_is_refused_by_name(name: str, engine: bridle.Engine) -> None:
    changes, words = UNSERVED[name]
    with pytest.raises(UnsupportedError, match="'ort' does not serve") as caught:
        run(engine, changes)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", NEEDS)
def test_folder_without_a_feature_says_so(name: str, plain_engine: bridle.Engine) -> None:
    with pytest.raises(UnsupportedError) as caught:
        run(plain_engine, CASES[name])
    assert NEEDS[name] in str(caught.value)


@pytest.mark.parametrize("name", ["text-to-image", "a prompt of two chunks", "Reweight"])
def test_folder_without_features_equals_the_reference(
    name: str, plain_engine: bridle.Engine, reference: bridle.Engine
) -> None:
    assert distance(run(plain_engine, CASES[name]), run(reference, CASES[name])) < 1e-3


def test_half_precision_is_as_close_as_pytorch(weights: Path, reference: bridle.Engine, tmp_path: Path) -> None:
    """The free-running rule: the median distance to float32 of several seeds, beside that of PyTorch's own float16."""
    export(weights, tmp_path / "out", controls=[weights / "controlnet"], features=("residuals",), precision="fp16")
    half, theirs = bridle.load(tmp_path / "out"), bridle.load(weights, backend="reference", dtype="float16")
    changes = [{"controls": [NET], "seed": seed} for seed in range(5)]
    wanted = [run(reference, change) for change in changes]
    ours, others = (
        statistics.median(distance(run(engine, change), exact) for change, exact in zip(changes, wanted, strict=True))
        for engine in (half, theirs)
    )
    assert half.backend.dtype == torch.float16 and 0.0 < ours <= 1.25 * others


def test_auto_takes_graphs_only_where_there_is_nothing_else(weights: Path, engine: bridle.Engine) -> None:
    assert engine.backend.name == "ort"
    assert bridle.load(weights).backend.name != "ort"


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_native_backends_refuse_graphs(name: str, exported: Path) -> None:
    with pytest.raises(UnsupportedError, match="backend='ort' runs them"):
        bridle.load(exported, backend=name)


def test_weights_are_refused(weights: Path) -> None:
    with pytest.raises(ModelLoadError, match="bridle export"):
        bridle.load(weights, backend="ort")


def test_another_dtype_is_refused(exported: Path) -> None:
    with pytest.raises(RequestError, match="float32"):
        bridle.load(exported, dtype="float16")


def test_threads_do_not_change_the_image(exported: Path, engine: bridle.Engine) -> None:
    other = bridle.load(exported, ort=bridle.OrtOptions(threads=3, spinning=True))
    assert distance(run(other, {}), run(engine, {})) < 1e-4


@pytest.mark.parametrize("shared", [True, False])
def test_shared_pool_is_one_for_all_graphs(shared: bool, exported: Path) -> None:
    """In a process of its own: a shared pool is there for good."""
    code = (
        "import os, sys, bridle\n"
        f"options = bridle.OrtOptions(threads=3, shared_pool={shared})\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "first = bridle.load(sys.argv[1], ort=options)\n"
        "before = count()\n"
        "second = bridle.load(sys.argv[1], ort=options)\n"
        "print(count() - before)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, timeout=120)
    assert process.stderr == ""
    added = int(process.stdout)
    assert added == 0 if shared else added >= 10


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"provider": "quantum"}, "OrtOptions.provider"),
        ({"threads": 0}, "OrtOptions.threads"),
        ({"spinning": 1}, "OrtOptions.spinning"),
        ({"shared_pool": None}, "OrtOptions.shared_pool"),
        ({"settings": {"gpu_mem_limit": 1}}, "OrtOptions.settings"),
    ],
)
def test_bad_options_are_refused(options: dict, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        bridle.OrtOptions(**options)
    assert caught.value.field == field


def test_provider_has_to_suit_the_device(exported: Path) -> None:
    with pytest.raises(RequestError, match="device cpu"):
        bridle.load(exported, device="cpu", ort=bridle.OrtOptions(provider="cuda"))


def test_provider_settings() -> None:
    assert bridle.OrtOptions(settings={"a": "b"}).provider_list("cpu", torch.device("cpu"), "unet") == [
        ("CPUExecutionProvider", {"a": "b"})
    ]
    names = [name for name, _ in bridle.OrtOptions().provider_list("cuda", torch.device("cuda", 1), "unet")]
    assert names == ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_graphs_for_a_gpu_are_found_and_give_the_same_image(
    provider: str, exported: Path, reference: bridle.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU provider, with everything at once: graphs of every network that has attention."""
    opened: list[str] = []
    read = Opener._read

    def read_of_gpu(self: Opener, *arguments: object) -> GraphFile:
        monkeypatch.setattr(self, "provider", provider)
        graph = read(self, *arguments)
        opened.append(graph.path.relative_to(exported).as_posix())
        return graph

    monkeypatch.setattr(Opener, "_read", read_of_gpu)
    changes = {
        **CASES["regions with an image prompt and a bias"],
        "controls": [NET, bridle.ImagePrompt("ip-adapter", picture(3))],
    }
    assert distance(run(bridle.load(exported), changes), run(reference, changes)) < 1e-3
    assert {f"unet/denoise.{provider}.onnx", "unet/cross_kv.onnx"} <= set(opened)
    assert f"controlnet/controlnet/denoise.{provider}.onnx" in opened
    assert not any(".cpu." in file for file in opened)


def test_engines_of_tensorrt_are_kept_by_version_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, options = torch.device("cuda", 1), bridle.OrtOptions(cache=tmp_path, settings={"trt_fp16_enable": "True"})
    folders = []
    for gpu in ("Card 1", "Card 2"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, gpu=gpu: gpu)
        folders.append(options.engine_folder(device))
    listed = options.provider_list("tensorrt", device, "unet")
    assert [name for name, _ in listed] == list(ORT_PROVIDERS)
    engine, fallback = listed[0][1], listed[1][1]
    assert engine["trt_engine_cache_path"] == engine["trt_timing_cache_path"] == str(folders[1] / "unet")
    assert engine["trt_engine_cache_enable"] == engine["trt_fp16_enable"] == "True"
    assert engine["device_id"] == fallback["device_id"] == "1"
    assert folders[0] != folders[1] and ort_version() in folders[0].name and folders[0].parent == tmp_path


@pytest.mark.parametrize("name", ["text-to-image", "attention regions", "CaptureMaps"])
def test_stand_ins_for_empty_inputs_change_nothing(name: str, exported: Path, engine: bridle.Engine) -> None:
    """TensorRT refuses the empty defaults: with a segment of weight 0 and no token's map, its graph gives the same images."""
    other = bridle.load(exported)
    backend = other.backend
    assert isinstance(backend, ort.OrtBackend) and not backend._stand_ins
    graph = read_graph(exported / "unet/denoise.tensorrt.onnx", "unet/denoise.tensorrt.onnx")
    backend._unet = backend._opener._session(graph)
    backend._stand_ins = stand_ins(graph)
    empty = {
        name for name, value in graph.inputs.items() if name in graph.defaults and 0 in _default_shape(graph, name)
    }
    assert empty and empty <= backend._stand_ins.keys()
    expected, found = run(engine, CASES[name]), run(other, CASES[name])
    assert distance(found, expected) < 1e-3
    assert found.maps.keys() == expected.maps.keys()
    backend._stand_ins = {key: torch.ones_like(values) for key, values in backend._stand_ins.items()}
    if name != "attention regions":  # which gives segments of its own
        assert distance(run(other, CASES[name]), expected) > 1e-2


def _default_shape(graph: GraphFile, name: str) -> tuple[int, ...]:
    """Of the initializer that an input has."""
    (tensor,) = (
        tensor for tensor in onnx.load(graph.path, load_external_data=False).graph.initializer if tensor.name == name
    )
    return tuple(tensor.dims)


def test_what_is_slow_is_announced(
    exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Graphs with many weights before they are prepared, engines of TensorRT with their place."""
    caplog.set_level("INFO", "bridle")
    bridle.load(exported)
    assert "preparing" not in caplog.text
    monkeypatch.setattr(session, "SLOW_BYTES", 1000)
    bridle.load(exported)
    assert "unet/denoise.cpu.onnx: preparing" in caplog.text
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card 1")
    graph = read_graph(exported / "unet/denoise.onnx", "unet/denoise.onnx")
    options = bridle.OrtOptions(provider="tensorrt", cache=tmp_path)
    session._announce(graph, options, "tensorrt", torch.device("cuda", 0))
    folder = options.engine_folder(torch.device("cuda", 0)) / "unet"
    assert folder.is_dir() and str(folder) in caplog.text


def test_another_graph_is_refused_when_it_is_loaded(exported: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(exported, tmp_path / "model"))
    for name in ("denoise.onnx", "denoise.cpu.onnx"):
        shutil.copyfile(broken / "unet/time_table.onnx", broken / "unet" / name)
    with pytest.raises(ModelLoadError, match=r"unet/denoise.* has no input 'sample'"):
        bridle.load(broken)


def test_fixed_sizes_are_refused_when_they_are_loaded(exported: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(exported, tmp_path / "model"))
    path = broken / "vae_decoder" / "model.cpu.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelLoadError, match=r"'latent_sample' has dimensions \[any, 4, 16, any\]"):
        bridle.load(broken)


def test_graphs_of_a_folder_share_their_mapped_weights(exported: Path) -> None:
    """Three graphs are open of the U-Net's folder. What was mapped before, by other engines, is not counted."""
    path = str(exported / "unet" / "model.onnx_data")

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(path)

    before = mappings()
    engine = bridle.load(exported)
    assert mappings() - before == 1 and engine.backend.name == "ort"


def test_bridle_is_imported_without_onnxruntime(weights: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['onnxruntime'] = sys.modules['onnx'] = None\n"
        "import importlib.util, bridle\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name.startswith('onnx') else found(name, *rest)\n"
        "from bridle.backends.choose import unavailable\n"
        "print(bridle.load(sys.argv[1]).backend.name, unavailable('ort'))\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(weights)], capture_output=True, text=True, timeout=120)
    name, reason = process.stdout.split(maxsplit=1)
    assert name != "ort" and "bridle[ort]" in reason


def test_what_is_declared() -> None:
    assert unserved("ort", Primitive.RESIDUALS) is None
    assert "P13" in str(unserved("ort", Primitive.CROSS_ROW))
