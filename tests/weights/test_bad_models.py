"""Broken model folders and weight files (reliability catalogue A and B): one ModelLoadError that names the file."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file

import bridle
from bridle.errors import ModelLoadError
from bridle.weights import Model, load_model
from bridle.weights.json_file import MAX_BYTES, read_json
from bridle.weights.safetensors_file import read_header, read_tensors

UNET = "unet/diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


def refused(folder: Path, named: str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert named in message, message
    assert len(message) <= 512 and not re.search(r"0x[0-9a-f]{6,}", message) and str(folder) not in message
    return message


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    return buffer.getvalue()


def test_a1_pickles_are_never_opened(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    for suffix in (".bin", ".ckpt", ".pt"):
        (folder / UNET).unlink(missing_ok=True)
        (folder / "unet" / f"model{suffix}").write_bytes(pickle.dumps(Bomb()))
        assert "safe_serialization" in refused(folder, "unet")
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path / "model.ckpt", "model.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [pickle.dumps({}, protocol) for protocol in range(2, 6)] + [zip_bytes()])
def test_a2_a3_pickles_and_archives_under_another_name(folder: Path, content: bytes) -> None:
    (folder / UNET).write_bytes(content)
    refused(folder, UNET)


def unet_is(found: Model, tensors: Mapping[str, torch.Tensor]) -> bool:
    return found.unet.tensors.keys() == tensors.keys() and all(
        torch.equal(found.unet.tensors[key], value) for key, value in tensors.items()
    )


def test_a4_safetensors_win_over_a_pickle_beside_them(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02 not read")
    assert unet_is(load_model(folder), load_file(folder / UNET))


@pytest.mark.parametrize("value", ["os.system", "NoSuchClass", ["UNet2DConditionModel"], 3, {}, None])
def test_a5_class_names_go_through_the_table(folder: Path, value: object) -> None:
    edit(folder / "unet/config.json", _class_name=value)
    refused(folder, "unet/config.json")


def test_a6_a7_code_beside_the_model_is_ignored(folder: Path) -> None:
    edit(folder / "unet/config.json", auto_map={"AutoModel": "evil.Evil"}, trust_remote_code=True)
    edit(folder / "model_index.json", custom_pipeline="evil", trust_remote_code=True)
    for name in ("pipeline.py", "evil.py", "unet/evil.py"):
        (folder / name).write_text("raise SystemExit('executed')")
    assert unet_is(load_model(folder), load_file(folder / UNET))


def test_a9_missing_parts_are_named(folder: Path) -> None:
    (folder / "vae/config.json").unlink()
    refused(folder, "vae/config.json")
    (folder / "model_index.json").unlink()
    refused(folder, "model_index.json")


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/etc/passwd", "missing.safetensors", 3])
def test_a9_a10_shard_index(folder: Path, shard: object) -> None:
    (folder / UNET).unlink()
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
    refused(folder, "index.json")


def test_a9_shards_load_and_a_lost_tensor_is_named(folder: Path) -> None:
    whole = load_file(folder / UNET)
    names = sorted(whole)
    (folder / UNET).unlink()
    stem = folder / "unet/diffusion_pytorch_model"
    halves = {"a": names[: len(names) // 2], "b": names[len(names) // 2 :]}
    for part, keys in halves.items():
        save_file({key: whole[key] for key in keys}, f"{stem}-{part}.safetensors")
    files = {key: f"diffusion_pytorch_model-{part}.safetensors" for part, keys in halves.items() for key in keys}
    index = Path(f"{stem}.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": files}))
    assert load_model(folder).unet.tensors.keys() == whole.keys()
    index.write_text(json.dumps({"weight_map": {key: file for key, file in files.items() if "-a" in file}}))
    assert names[-1] in refused(folder, "unet") or "is missing" in refused(folder, "unet")


def test_a11_links_out_of_the_folder_and_special_files(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (folder / UNET).rename(outside)
    (folder / UNET).symlink_to(outside)
    refused(folder, "outside the model folder")
    (folder / UNET).unlink()
    (folder / UNET).symlink_to(tmp_path / "dangling")
    refused(folder, "unet")
    (folder / UNET).unlink()
    os.mkfifo(folder / UNET)
    refused(folder, UNET)
    (folder / "vae/config.json").unlink()
    (folder / "vae/config.json").mkdir()
    (folder / UNET).unlink()
    outside.rename(folder / UNET)
    refused(folder, "vae/config.json")


def test_a_cached_snapshot_may_link_into_its_own_repository(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--who--what"
    snapshot = repository / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (repository / "blobs").mkdir()
    (snapshot / UNET).rename(repository / "blobs" / "1234")
    (snapshot / UNET).symlink_to(repository / "blobs" / "1234")
    assert unet_is(load_model(snapshot), load_file(repository / "blobs" / "1234"))


def test_a_hugging_face_id_comes_from_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--who--what"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_model("who/what").architecture == "sd1"
    with pytest.raises(ModelLoadError, match="who/else"):
        load_model("who/else")


def test_variant(folder: Path) -> None:
    half = {key: tensor.half() for key, tensor in load_file(folder / UNET).items()}
    (folder / UNET).unlink()
    save_file(half, folder / UNET.replace(".safetensors", ".fp16.safetensors"))
    refused(folder, "unet")
    for name in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        (folder / f"{name}.safetensors").rename(folder / f"{name}.fp16.safetensors")
    loaded = load_model(folder, variant="fp16")
    assert loaded.unet.tensors["conv_in.weight"].dtype == torch.float16
    with pytest.raises(ModelLoadError, match="variant 'bf16'"):
        load_model(folder, variant="bf16")


BAD_JSON = {
    "empty": b"",
    "truncated": b'{"a": 1',
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "too large": b" " * (MAX_BYTES + 1),
    "deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "deep lists": b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
    "duplicate keys": b'{"a": 1, "a": 2}',
    "trailing": b"{} x",
    "list": b"[]",
    "NaN": b'{"a": NaN}',
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_a12_broken_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_json(tmp_path / "config.json", "config.json")


@pytest.mark.parametrize(
    "value", [[0], [-32, 64, 64, 64], [2**63, 64, 64, 64], 1e308, "320", None, [33, 64, 64, 64], [32.5, 64, 64, 64]]
)
def test_a13_absurd_numbers(folder: Path, value: object) -> None:
    edit(folder / "unet/config.json", block_out_channels=value)
    refused(folder, "unet")


def test_a14_configuration_and_weights_that_disagree_show_both_shapes(folder: Path) -> None:
    edit(folder / "unet/config.json", in_channels=9)
    message = refused(folder, "conv_in.weight")
    assert "[32, 4, 3, 3]" in message and "[32, 9, 3, 3]" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "NoSuch"},
        {"_class_name": ["DDIMScheduler"]},
        {"_class_name": None},
        {"trained_betas": []},
        {"beta_end": 0.0001},
        {"beta_start": "0.1"},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 2**31},
        {"prediction_type": "flow"},
        {"beta_schedule": "no such"},
    ],
    ids=str,
)
def test_a15_scheduler(folder: Path, changes: dict[str, object]) -> None:
    edit(folder / "scheduler/scheduler_config.json", **changes)
    refused(folder, "scheduler/scheduler_config.json")


def test_a15_a_scheduler_that_clips_is_refused_when_it_is_used(folder: Path) -> None:
    """A request may name another one."""
    edit(folder / "scheduler/scheduler_config.json", clip_sample=True)
    engine = bridle.load(folder)
    with pytest.raises(bridle.RequestError, match="clip_sample"):
        engine.sample(bridle.Request("a", num_inference_steps=1))
    engine.sample(bridle.Request("a", num_inference_steps=1, scheduler="euler", output_type="latent"))


def test_a16_tokenizer(folder: Path) -> None:
    vocabulary = folder / "tokenizer/vocab.json"
    words = json.loads(vocabulary.read_text())
    for token, index in (("zebra</w>", 1024), ("zebra</w>", 10**7)):
        vocabulary.write_text(json.dumps({**words, token: index}))
        assert "1024" in refused(folder, "tokenizer: token 'zebra</w>'")
    vocabulary.write_text(json.dumps({**words, "zebra</w>": 1023}))
    load_model(folder)
    for content in ("not json", "[]", '{"a": "b"}', '{"a": -1}', ""):
        vocabulary.write_text(content)
        refused(folder, "tokenizer")
    vocabulary.write_text(json.dumps(words))
    load_model(folder)
    (folder / "tokenizer/merges.txt").unlink()
    refused(folder, "tokenizer")
    vocabulary.unlink()
    refused(folder, "tokenizer")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a20_non_finite_weights_are_named(folder: Path, value: float) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["conv_out.weight"].view(-1)[7] = value

    edit_tensors(folder / UNET, poison)
    assert "conv_out.weight" in refused(folder, UNET)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_b17_integers_where_floats_belong_are_named(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder / UNET, lambda tensors: tensors.update({"conv_in.bias": tensors["conv_in.bias"].to(dtype)}))
    assert str(dtype).removeprefix("torch.") in refused(folder, "conv_in.bias")


def test_a8_paths_in_configurations_lead_nowhere(folder: Path, tmp_path: Path) -> None:
    """No field of a configuration is a path: the parts of a folder have fixed names."""
    for path in ("../../other", "/etc", "~", "https://example.invalid/x"):
        edit(folder / "unet/config.json", _name_or_path=path)
        edit(folder / "model_index.json", _name_or_path=path, unet=[path, "UNet2DConditionModel"])
        load_model(folder)
        edit(folder / "model_index.json", text_encoder=[path, path], **{path: [path, path]})
        load_model(folder)
    (folder / "unet").rename(tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    refused(folder, "outside the model folder")


def test_a14_another_family(folder: Path, original_xl: Path) -> None:
    shutil.copy(original_xl / UNET, folder / UNET)
    assert "[" in refused(folder, "unet")
    shutil.copy(original_xl / "unet/config.json", folder / "unet/config.json")
    refused(folder, "cross_attention_dim")


def test_unexpected_and_missing_tensors(folder: Path) -> None:
    edit_tensors(folder / UNET, lambda tensors: tensors.update(stranger=torch.ones(1)))
    refused(folder, "stranger")
    edit_tensors(folder / UNET, lambda tensors: (tensors.pop("stranger"), tensors.pop("conv_in.bias")))
    refused(folder, "conv_in.bias")


def test_what_does_not_exist(tmp_path: Path) -> None:
    for name in ("missing", "../x", "~/x", "nobody/nothing", "a/b/c", str(tmp_path / "nowhere"), "x" * 5000, "a\nb"):
        with pytest.raises(ModelLoadError):
            load_model(name)


def header(entries: object, body: int = 0, length: int | None = None) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(body)


def tensor(shape: list[Any], begin: int, end: int, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD_BYTES = {
    "B1 empty": b"",
    "B2 seven bytes": bytes(7),
    "B3 no header": bytes(8),
    "B4 header longer than the file": header({}, length=1000),
    "B4 header of 2^63": header({}, length=2**63),
    "B4 header of 2^64 - 1": header({}, length=2**64 - 1),
    "B5 header above the cap": header(b"{" + b" " * (16 * 1024 * 1024) + b"}"),
    "B5 too many tensors": header({str(i): tensor([0], 0, 0) for i in range(100_001)}),
    "B6 no brace": header(b"[]"),
    "B6 leading space": header(b" {}"),
    "B6 NUL": header(b"\0{}"),
    "B7 invalid UTF-8": header(b'{"\xff": 1}'),
    "B7 overlong": header(b'{"\xc0\xaf": 1}'),
    "B9 depth": header(b'{"a":' * 100_000),
    "B9 duplicate": header(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":1}'),
    "B10 begin after end": header({"a": tensor([1], 4, 0)}, 4),
    "B10 negative": header({"a": tensor([1], -4, 0)}, 4),
    "B10 past the end": header({"a": tensor([2], 0, 8)}, 4),
    "B10 empty span": header({"a": tensor([4], 0, 0)}),
    "B11 overlap": header({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, 4),
    "B12 hole": header({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, 12),
    "B12 trailing bytes": header({"a": tensor([1], 0, 4)}, 5),
    "B13 shape too large": header({"a": tensor([1_000_000], 0, 4)}, 4),
    "B14 product wraps to 0": header({"a": tensor([2**32, 2**32], 0, 0)}),
    "B15 product wraps to 4": header({"a": tensor([4194305, 4194305, 211106198978564], 0, 16)}, 16),
    "B16 negative dimension": header({"a": tensor([-1], 0, 4)}, 4),
    "B16 float dimension": header({"a": tensor([1.0], 0, 4)}, 4),
    "B16 string dimension": header({"a": tensor(["1"], 0, 4)}, 4),
    "B16 many dimensions": header({"a": tensor([1] * 65, 0, 4)}, 4),
    "B17 unknown type": header({"a": tensor([1], 0, 4, "F33")}, 4),
    "B17 lower case": header({"a": tensor([1], 0, 4, "f32")}, 4),
    "B17 type is a list": header({"a": tensor([1], 0, 4, ["F32"])}, 4),
    "B20 big-endian length": struct.pack(">Q", 2) + b"{}",
}


@pytest.mark.parametrize("content", BAD_BYTES.values(), ids=BAD_BYTES)
def test_b_broken_headers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        read_header(tmp_path / "model.safetensors", "model.safetensors")


def test_b_what_is_legal(tmp_path: Path) -> None:
    entries = {
        "__metadata__": {"format": "pt"},
        "scalar": tensor([], 0, 4),
        "empty": tensor([0, 3], 4, 4),
        "odd": tensor([1], 4, 5, "U8"),
        "misaligned": tensor([2], 5, 13),
    }
    raw = json.dumps(entries).encode() + b"   "
    body = struct.pack("<fBff", 1.5, 7, 2.5, -3.5)
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    read = dict(read_tensors(file, "model.safetensors", None, torch.device("cpu")))
    assert read["scalar"] == 1.5 and read["misaligned"].tolist() == [2.5, -3.5] and read["empty"].shape == (0, 3)


def test_b26_agrees_with_the_official_reader_on_mutated_files(tmp_path: Path) -> None:
    """Nothing that the official reader refuses gets through, and the bytes of what both accept agree."""
    good = tmp_path / "good.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.float16)}, good)
    base, generator = bytearray(good.read_bytes()), torch.Generator().manual_seed(0)
    accepted = 0
    for _ in range(3000):
        mutated = bytearray(base)
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            place = int(torch.randint(0, len(mutated), (), generator=generator))
            mutated[place] = int(torch.randint(0, 256, (), generator=generator))
        file = tmp_path / "mutated.safetensors"
        file.write_bytes(mutated)
        try:
            ours = dict(read_tensors(file, "mutated.safetensors", None, torch.device("cpu")))
        except ModelLoadError:
            continue
        accepted += 1
        try:
            theirs = load_bytes(bytes(mutated))
        except SafetensorError:
            pytest.fail(f"accepted what the official reader refuses: {bytes(mutated)!r}")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert 0 < accepted < 3000


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(folder: Path, cut: float) -> None:
    content = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(content[: int(len(content) * cut)])
    refused(folder, UNET)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 3, 3_000_000])
def test_a20_every_float_type_is_searched_to_its_end(tmp_path: Path, dtype: torch.dtype, place: int) -> None:
    file = tmp_path / "model.safetensors"
    weights = torch.linspace(-1.0, 1.0, 3_000_001).to(dtype)
    weights[1] = torch.finfo(dtype).max
    save_file({"first": torch.ones(5, dtype=torch.uint8), "weights": weights}, file)
    assert torch.equal(dict(read_tensors(file, "m", None, CPU))["weights"], weights)
    for value in (torch.nan, torch.inf, -torch.inf):
        weights[place] = value
        save_file({"first": torch.ones(5, dtype=torch.uint8), "weights": weights}, file)
        with pytest.raises(ModelLoadError, match="m: tensor 'weights': has NaN"):
            dict(read_tensors(file, "m", None, CPU))


def test_values_that_the_asked_type_cannot_hold_are_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"fine": torch.ones(3), "large": torch.tensor([1.0, 7e4])}, file)
    assert dict(read_tensors(file, "m", torch.bfloat16, CPU))["large"].dtype == torch.bfloat16
    with pytest.raises(ModelLoadError, match="'large': has values that float16 cannot hold"):
        dict(read_tensors(file, "m", torch.float16, CPU))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_weights_are_mapped_and_not_copied(tmp_path: Path) -> None:
    file, size = tmp_path / "model.safetensors", 64 << 20
    save_file({"weights": torch.ones(size // 4)}, file)
    code = (
        "import re, sys, torch, pathlib; from bridle.weights.safetensors_file import read_tensors\n"
        "def resident(): return sum(int(kib) for kib in re.findall(r'Rss(?:Anon|File):\\s+(\\d+)', "
        "open('/proc/self/status').read()))\n"
        "before = resident()\n"
        "dtype = torch.bfloat16 if sys.argv[2] == 'converted' else None\n"
        "kept = dict(read_tensors(pathlib.Path(sys.argv[1]), 'm', dtype, torch.device('cpu')))\n"
        "print(resident() - before)"
    )
    grown = {
        kind: int(subprocess.run([sys.executable, "-c", code, str(file), kind], check=True, capture_output=True).stdout)
        for kind in ("stored", "converted")
    }
    assert grown["stored"] < size / 1024 / 4, grown
    assert grown["converted"] >= size / 1024 / 2, grown


def test_a17_files_that_change_while_they_are_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bridle.weights import safetensors_file

    original = safetensors_file.first_too_large
    for moment in ("before the search", "after the search"):
        file = tmp_path / "model.safetensors"
        save_file({"a": torch.ones(100_000), "b": torch.ones(100_000)}, file)

        def shortened(path: Path, spans: Any, moment: str = moment, file: Path = file) -> str | None:
            found = original(path, spans) if moment == "after the search" else None
            os.truncate(file, 450_000)
            return found if moment == "after the search" else original(path, spans)

        monkeypatch.setattr(safetensors_file, "first_too_large", shortened)
        with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
            dict(read_tensors(file, "model.safetensors", None, CPU))
        monkeypatch.setattr(safetensors_file, "first_too_large", original)


def test_a17_a_file_may_be_replaced_after_loading(folder: Path) -> None:
    before = load_model(folder).unet.tensors["conv_in.weight"]
    wanted = before.clone()
    other = folder / "unet/other.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(folder / UNET).items()}, other)
    other.replace(folder / UNET)
    assert torch.equal(before, wanted)
    assert torch.equal(load_model(folder).unet.tensors["conv_in.weight"], wanted + 1)


def test_b25_one_file_in_many_threads(folder: Path) -> None:
    wanted = load_file(folder / UNET)
    with ThreadPoolExecutor(8) as pool:
        for read in pool.map(lambda _: dict(read_tensors(folder / UNET, UNET, None, CPU)), range(16)):
            assert read.keys() == wanted.keys()
            assert all(torch.equal(read[key], wanted[key]) for key in wanted)
