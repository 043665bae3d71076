"""ONNX files from outside (reliability.md 2.3 C): each bad one is one typed error before ONNX Runtime sees it."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import bad_graphs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridle.backends.onnx_runtime import graph_file, wire
from bridle.backends.onnx_runtime.graph_file import mapped, read_graph
from bridle.errors import ModelLoadError

LABEL = "unet/model.onnx"

BAD_CONTENTS = {
    "above the folder": (bad_graphs.weight(location="../model.onnx_data"), "wants them in 'model.onnx_data'"),
    "down and up": (bad_graphs.weight(location="a/../../model.onnx_data"), "wants them in"),
    "absolute": (bad_graphs.weight(location="/etc/passwd"), "wants them in"),
    "Windows path": (bad_graphs.weight(location="..\\model.onnx_data"), "wants them in"),
    "address": (bad_graphs.weight(location="https://example.org/model.onnx_data"), "wants them in"),
    "another file": (bad_graphs.weight(location="weights.bin"), "wants them in"),
    "empty location": (bad_graphs.weight(location=""), "wants them in"),
    "zero byte in location": (bad_graphs.weight(location="model.onnx_data\x00x"), "wants them in"),
    "memory marker": (bad_graphs.weight(location="*/_ORT_MEM_ADDR_/*"), "_ORT_MEM_ADDR_"),
    "negative offset": (bad_graphs.weight(offset="-1"), "offset"),
    "offset in words": (bad_graphs.weight(offset="zero"), "offset"),
    "offset in other digits": (bad_graphs.weight(offset="٣"), "offset"),
    "huge offset": (bad_graphs.weight(offset=str(2**62)), "offset"),
    "offset past the end": (bad_graphs.weight(offset="8"), "ends at 32"),
    "negative length": (bad_graphs.weight(length="-24"), "length"),
    "short length": (bad_graphs.weight(length="20"), "length"),
    "no length": (bad_graphs.renamed_key("length", "checksum"), "length"),
    "no location": (bad_graphs.renamed_key("location", "checksum"), "wants them in"),
    "unknown key": (bad_graphs.weight(basepath="/"), "unknown or repeated key 'basepath'"),
    "dunder key": (bad_graphs.weight(__class__="x"), "unknown or repeated key '__class__'"),
    "repeated key": (bad_graphs.repeated_key, "repeated key 'location'"),
    "place without declaration": (bad_graphs.undeclared_location, "does not say plainly"),
    "constant in a file": (bad_graphs.constant_in_a_file, "is not a weight"),
    "weight of an inner graph in a file": (bad_graphs.weight_inside_branch, "is not a weight"),
    "deep graphs": (bad_graphs.nested(20), "8 deep"),
    "custom op": (bad_graphs.node("Evil", "com.example"), "the domain 'com.example'"),
    "compiled code": (bad_graphs.node("EPContext", "com.microsoft"), "the op 'EPContext'"),
    "custom opset": (bad_graphs.imported("ai.onnx.contrib"), "the domain 'ai.onnx.contrib'"),
    "own function": (bad_graphs.with_function, "functions"),
    "training": (bad_graphs.with_training, "training"),
    "settings": (bad_graphs.with_settings, "ort_config"),
    "sparse weight": (bad_graphs.sparse_weight, "sparse"),
    "weight twice": (bad_graphs.twice_the_same_weight, "stands there twice"),
    "strings": (bad_graphs.string_weight, "type number 8"),
    "short inline weight": (bad_graphs.short_inline_weight, "has 4 bytes, its shape wants 4000000"),
    "negative dimension": (bad_graphs.negative_dimension, "dimensions"),
    "too many elements": (bad_graphs.overflowing_dimensions, "length"),
    "sequence": (bad_graphs.sequence_input, "no tensor of numbers"),
    "no rank": (bad_graphs.input_without_rank, "known rank"),
    "input twice": (bad_graphs.twice_the_same_input, "stands there twice"),
    "no graph": (bad_graphs.without_graph, "has no graph"),
    "no output": (bad_graphs.without_outputs, "has no output"),
}


def refusal(path: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        read_graph(path, LABEL)
    assert caught.value.file.startswith(LABEL)
    return str(caught.value)


def test_plain_model_is_read(tmp_path: Path) -> None:
    graph = read_graph(bad_graphs.write(tmp_path), LABEL)
    assert {name: (value.type, value.dims) for name, value in graph.inputs.items()} == {"x": ("float32", (None, 2))}
    assert graph.outputs["y"].dims == (None, 3)
    (found,) = graph.external
    assert (found.dims, found.offset, found.length) == ((2, 3), 0, bad_graphs.BYTES)
    assert np.array_equal(np.frombuffer(mapped(graph.data), np.float32), np.arange(6))


@pytest.mark.parametrize("name", BAD_CONTENTS)
def test_bad_content_is_refused(name: str, tmp_path: Path) -> None:
    change, words = BAD_CONTENTS[name]
    assert words in refusal(bad_graphs.write(tmp_path, change))


def link(path: Path) -> None:
    path.rename(path.with_name("target"))
    path.symlink_to("target")


def hard_link(path: Path) -> None:
    os.link(path, path.with_name("second"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["model.onnx", bad_graphs.DATA])
@pytest.mark.parametrize("replace", [link, hard_link, pipe, Path.unlink], ids=["link", "hard link", "pipe", "missing"])
def test_files_that_are_not_their_own_are_refused(name: str, replace: object, tmp_path: Path) -> None:
    path = bad_graphs.write(tmp_path)
    replace(tmp_path / name)  # type: ignore[operator]
    assert "link" in (message := refusal(path)) or "missing" in message


def test_short_data_file_is_refused(tmp_path: Path) -> None:
    path = bad_graphs.write(tmp_path)
    os.truncate(tmp_path / bad_graphs.DATA, bad_graphs.BYTES - 1)
    assert "has 23 bytes, this tensor ends at 24" in refusal(path)


def test_data_file_is_not_opened_by_the_check(tmp_path: Path) -> None:
    path = bad_graphs.write(tmp_path)
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    read_graph(path, LABEL)
    assert [name for name in opened if str(tmp_path) in name] == [str(path)]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """Cut between two fields, a file is a shorter model: then it lacks its graph, weights or outputs."""
    path = bad_graphs.write(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole) - len(bad_graphs.plain_model().opset_import[0].SerializeToString()) - 2):
        path.write_bytes(whole[:length])
        refusal(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_never_crash_the_check(data: st.DataObject, tmp_path: Path) -> None:
    path = bad_graphs.write(tmp_path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        graph = read_graph(path, LABEL)
    except ModelLoadError:
        return
    assert all(t.offset + t.length <= bad_graphs.BYTES for t in graph.external)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(content: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        wire.Message(memoryview(content), wire.Budget())


def test_huge_file_is_refused_without_reading(tmp_path: Path) -> None:
    path = bad_graphs.write(tmp_path)
    os.truncate(path, graph_file.MAX_BYTES + 1)
    assert "wants 1 to" in refusal(path)


def test_message_of_two_gigabytes_of_zeros_is_refused_at_once(tmp_path: Path) -> None:
    path = bad_graphs.write(tmp_path)
    os.truncate(path, graph_file.MAX_BYTES)
    begin = time.monotonic()
    assert "number 0" in refusal(path)
    assert time.monotonic() - begin < 5.0


def test_million_nodes_are_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    """In a process of little memory: the file is 20 MB, and the check keeps none of it."""
    path = bad_graphs.write(tmp_path)
    nodes = b"\x0a\x12" + b"\x0a\x01x\x12\x01y\x22\x0aIdentityXX"
    body = (nodes[:1] + bytes([len(nodes) - 2]) + nodes[2:]) * 1_000_000
    size, length = len(body), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    path.write_bytes(b"\x3a" + length + bytes([size]) + body)
    code = (
        "import resource, sys, pathlib\n"
        "from bridle.backends.onnx_runtime.graph_file import read_graph\n"
        "from bridle.errors import ModelLoadError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    read_graph(pathlib.Path(sys.argv[1]), 'm')\n"
        "except ModelLoadError as problem:\n"
        "    print(problem, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    begin = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    message, _, grown = run.stdout.strip().rpartition(" ")
    assert "more than 200000 nodes" in message, run.stdout + run.stderr
    assert int(grown) < 500_000
    assert time.monotonic() - begin < 60.0
