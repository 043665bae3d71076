"""IP-Adapters from files and folders: both formats, the encoder that belongs to them, and files that are broken."""

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from bridle.errors import ModelLoadError
from bridle.networks.unet import attention_sites
from bridle.new_model import write_new_model
from bridle.weights import IPAdapter, Model, load_ip_adapter, load_model

ADAPTER = "ip-adapter.safetensors"
CPU = torch.device("cpu")
CASES = [(arch, kind) for arch in ("tiny", "tiny-xl") for kind in ("base", "plus", "full")]
IDS = [f"{arch} {kind}" for arch, kind in CASES]
FIRST_KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Path]:
    """Model folders with an adapter of every kind; not to be changed."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, (arch, kind) in enumerate(CASES):
        write_new_model(arch, root / f"{arch}-{kind}", seed=seed, ip_adapter=kind)
    return {(arch, kind): root / f"{arch}-{kind}" for arch, kind in CASES}


@pytest.fixture(scope="module")
def base(folders: Mapping[tuple[str, str], Path]) -> Model:
    return load_model(folders["tiny", "base"])


@pytest.fixture
def adapter(folders: Mapping[tuple[str, str], Path], tmp_path: Path) -> Path:
    """A base adapter with its encoder, to break."""
    return Path(shutil.copytree(folders["tiny", "base"] / "ip-adapter", tmp_path / "adapter"))


@pytest.fixture
def plus(folders: Mapping[tuple[str, str], Path], tmp_path: Path) -> Path:
    """A plus adapter with its encoder, to break."""
    return Path(shutil.copytree(folders["tiny", "plus"] / "ip-adapter", tmp_path / "plus"))


def load(path: Path, base: Model, **options: Any) -> IPAdapter:
    return load_ip_adapter(path, dtype=None, device=CPU, base=base, **options)


def assert_same(one: IPAdapter, other: IPAdapter) -> None:
    assert one.projection.config == other.projection.config and one.tokens == other.tokens
    for mine, theirs in ((one.projection.tensors, other.projection.tensors), (one.attention, other.attention)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(path: Path, base: Model, *named: str, **options: Any) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(path, base, **options)
    message = str(caught.value)
    assert all(part in message for part in named), message
    assert len(message) <= 512 and str(path.parent) not in message, message


@pytest.mark.parametrize(("arch", "kind"), CASES, ids=IDS)
def test_the_file_that_diffusers_loads_and_the_u_net_that_it_saves(
    folders: Mapping[tuple[str, str], Path], tmp_path: Path, arch: str, kind: str
) -> None:
    folder = folders[arch, kind]
    base = load_model(folder)
    ours = load(folder / "ip-adapter", base)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_ip_adapter(folder, subfolder="ip-adapter", weight_name=ADAPTER)
    theirs = pipeline.unet.state_dict()
    for name, tensor in ours.projection.tensors.items():
        assert torch.equal(tensor, theirs[f"encoder_hid_proj.image_projection_layers.0.{name}"]), name
    sites = attention_sites(base.unet.config)
    assert len(ours.attention) == 2 * len(sites)
    for site in sites:
        for part in ("to_k", "to_v"):
            wanted = theirs[f"{site.name}.processor.{part}_ip.0.weight"]
            assert torch.equal(ours.attention[f"{site.name}.{part}.weight"], wanted), site.name
    for name, tensor in pipeline.image_encoder.state_dict().items():
        assert torch.equal(ours.image_encoder.tensors[name], tensor), name
    assert (ours.kind, ours.tokens) == (kind, {"base": 4, "plus": 16, "full": 17}[kind])

    pipeline.unet.save_pretrained(tmp_path / "unet")
    assert_same(load(tmp_path, base, subfolder="unet", image_encoder=folder / "ip-adapter/image_encoder"), ours)
    save_file(
        {name: t.clone() for name, t in theirs.items() if "_ip." in name or "_proj." in name},
        tmp_path / "a.safetensors",
    )
    assert_same(load(tmp_path / "a.safetensors", base, image_encoder=folder / "ip-adapter/image_encoder"), ours)


def test_sites_are_counted_down_up_mid(base: Model, adapter: Path) -> None:
    """controls.md 0.3: 0-11 encoder, then decoder, the middle block last."""
    tensors = load_file(adapter / ADAPTER)
    attention = load(adapter, base).attention
    names = {1: "down_blocks.0.attentions.0", 11: "down_blocks.2.attentions.1", 13: "up_blocks.1.attentions.0"}
    for index, name in (names | {29: "up_blocks.3.attentions.2", 31: "mid_block.attentions.0"}).items():
        wanted = tensors[f"ip_adapter.{index}.to_v_ip.weight"]
        assert torch.equal(attention[f"{name}.transformer_blocks.0.attn2.to_v.weight"], wanted)


def test_the_paths_that_lead_to_an_adapter(folders: Mapping[tuple[str, str], Path], base: Model) -> None:
    folder = folders["tiny", "base"]
    direct = load(folder / "ip-adapter" / ADAPTER, base)
    for options in ({"subfolder": "ip-adapter"}, {"subfolder": "ip-adapter", "weight_name": ADAPTER}):
        assert_same(load(folder, base, **options), direct)
    for encoder in ("image_encoder", "ip-adapter/image_encoder", folder / "ip-adapter/image_encoder"):
        found = load(folder, base, subfolder="ip-adapter", image_encoder=encoder)
        assert found.image_encoder_folder == direct.image_encoder_folder
    half = load_ip_adapter(folder / "ip-adapter", dtype=torch.float16, device=CPU, base=base)
    parts = (half.projection.tensors, half.attention, half.image_encoder.tensors)
    assert {tensor.dtype for part in parts for tensor in part.values()} == {torch.float16}


def test_the_encoder_whose_widths_fit_is_taken_and_shared(
    folders: Mapping[tuple[str, str], Path], base: Model, tmp_path: Path
) -> None:
    """The layout of h94/IP-Adapter: `sdxl_models` has an encoder of its own, and adapters for that of `models`."""
    source = folders["tiny", "base"] / "ip-adapter"
    shutil.copytree(source, tmp_path / "models")
    other = tmp_path / "sdxl_models"
    shutil.copytree(source, other)
    (other / ADAPTER).rename(other / "vit-h.safetensors")
    wider = {
        key: torch.ones(30, *t.shape[1:]) for key, t in load_file(other / "image_encoder/model.safetensors").items()
    }
    edit(
        other / "image_encoder/model.safetensors",
        lambda t: t.update({"visual_projection.weight": wider["visual_projection.weight"]}),
    )
    config = json.loads((other / "image_encoder/config.json").read_text())
    (other / "image_encoder/config.json").write_text(json.dumps({**config, "projection_dim": 30}))
    tensors = load_file(other / "vit-h.safetensors")
    tensors["image_proj.proj.weight"] = torch.ones(tensors["image_proj.proj.weight"].shape[0], 30)
    save_file(tensors, other / "vit-g.safetensors")

    def encoder(**options: Any) -> Path:
        return load(tmp_path, base, **options).image_encoder_folder.relative_to(tmp_path)

    assert encoder(subfolder="models") == Path("models/image_encoder")
    assert encoder(subfolder="sdxl_models", weight_name="vit-h.safetensors") == Path("models/image_encoder")
    assert encoder(subfolder="sdxl_models", weight_name="vit-g.safetensors") == Path("sdxl_models/image_encoder")
    first = load(tmp_path, base, subfolder="models")
    second = load(tmp_path, base, subfolder="sdxl_models", weight_name="vit-h.safetensors", loaded=[first])
    third = load(tmp_path, base, subfolder="sdxl_models", weight_name="vit-g.safetensors", loaded=[first, second])
    assert second.image_encoder is first.image_encoder and third.image_encoder is not first.image_encoder
    refused(tmp_path, base, "sdxl_models", "2 adapters", "weight_name", subfolder="sdxl_models")


def test_a_cached_id(folders: Mapping[tuple[str, str], Path], base: Model, tmp_path: Path, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    for name in ("adapter", "encoder"):
        repository = tmp_path / "hub" / f"models--who--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        (repository / "blobs").mkdir()
        source = folders["tiny", "base"] / ("ip-adapter" if name == "adapter" else "ip-adapter/image_encoder")
        target = repository / "snapshots" / ("0" * 40)
        shutil.copytree(source, target)
        for number, file in enumerate(target.rglob("*.safetensors")):
            file.rename(repository / "blobs" / str(number))
            file.symlink_to(repository / "blobs" / str(number))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    inside = load_ip_adapter("who/adapter", dtype=None, device=CPU, base=base)
    outside = load_ip_adapter("who/adapter", dtype=None, device=CPU, base=base, image_encoder="who/encoder")
    assert_same(inside, outside)
    assert inside.image_encoder_folder != outside.image_encoder_folder


BROKEN: Mapping[str, tuple[Callable[[dict[str, Tensor]], object], tuple[str, ...]]] = {
    "missing key": (lambda t: t.pop("ip_adapter.31.to_k_ip.weight"), ("ip_adapter.31.to_k_ip.weight", "is missing")),
    "missing bias": (lambda t: t.pop("image_proj.proj.bias"), ("image_proj.proj.bias", "is missing")),
    "missing norm": (lambda t: t.pop("image_proj.norm.weight"), ("image_proj.norm.weight", "is missing")),
    "missing projection": (lambda t: t.pop("image_proj.proj.weight"), ("image_proj.proj.weight", "is missing")),
    "no projection": (
        lambda t: [t.pop(k) for k in list(t) if k.startswith("image_proj.")],
        ("image_proj.norm.weight", "is missing"),
    ),
    "unexpected": (lambda t: t.update({"image_proj.x": torch.ones(1)}), ("image_proj.x", "not part")),
    "unexpected site": (
        lambda t: t.update({"ip_adapter.33.to_k_ip.weight": torch.ones(32, 32)}),
        ("ip_adapter.33.to_k_ip.weight", "not part"),
    ),
    "self-attention": (
        lambda t: t.update({"ip_adapter.0.to_k_ip.weight": torch.ones(32, 32)}),
        ("ip_adapter.0.to_k_ip.weight", "not part"),
    ),
    "wrong shape": (
        lambda t: t.update({"ip_adapter.7.to_v_ip.weight": torch.ones(32, 32)}),
        ("ip_adapter.7.to_v_ip.weight", "[32, 32]", "[64, 32]"),
    ),
    "wrong dimensions": (
        lambda t: t.update({"image_proj.proj.weight": torch.ones(128, 24, 1)}),
        ("image_proj.proj.weight", "2 dimensions"),
    ),
    "half a token": (
        lambda t: t.update({"image_proj.proj.weight": torch.ones(130, 24)}),
        ("image_proj.proj.weight", "[130, 24]", "[128, 24]"),
    ),
    "less than a token": (
        lambda t: t.update({"image_proj.proj.weight": torch.ones(8, 24)}),
        ("image_proj.proj.weight", "[8, 24]", "[32, 24]"),
    ),
    "empty": (lambda t: t.update({"image_proj.norm.weight": torch.ones(0)}), ("image_proj.norm.weight", "[0]")),
    "NaN": (lambda t: t["ip_adapter.5.to_k_ip.weight"].view(-1)[9].fill_(torch.nan), ("ip_adapter.5.to_k_ip", "NaN")),
    "infinite": (lambda t: t["image_proj.norm.bias"][3].fill_(torch.inf), ("image_proj.norm.bias", "infinite")),
    "other base": (lambda t: t.update({"image_proj.norm.weight": torch.ones(64)}), ("width 64", "has 32")),
    "FaceID": (
        lambda t: (t.update({"image_proj.proj.0.weight": torch.ones(2, 2)}), t.pop("image_proj.proj.weight")),
        ("image_proj.proj.0.weight", "FaceID"),
    ),
    "FaceID LoRA": (
        lambda t: t.update({"ip_adapter.0.to_q_lora.up.weight": torch.ones(2, 2)}),
        ("ip_adapter.0.to_q_lora.up.weight", "FaceID"),
    ),
    "FaceID plus": (
        lambda t: t.update({"image_proj.perceiver_resampler.proj_in.weight": torch.ones(2, 2)}),
        ("perceiver_resampler", "FaceID"),
    ),
    "something else": (
        lambda t: (t.clear(), t.update({"conv.weight": torch.ones(2, 2)})),
        ("is no IP-Adapter", "image_proj."),
    ),
}


@pytest.mark.parametrize(("change", "named"), BROKEN.values(), ids=BROKEN)
def test_broken_weights_are_named(
    base: Model, adapter: Path, change: Callable[[dict[str, Tensor]], object], named: tuple[str, ...]
) -> None:
    load(adapter, base)
    edit(adapter / ADAPTER, change)
    refused(adapter, base, ADAPTER, *named)


BROKEN_PLUS: Mapping[str, tuple[Callable[[dict[str, Tensor]], object], tuple[str, ...]]] = {
    "keys and values": (
        lambda t: t.update({"image_proj.layers.1.0.to_kv.weight": torch.ones(64, 32)}),
        ("image_proj.layers.1.0.to_kv.weight", "[64, 32]", "[128, 32]"),
    ),
    "heads": (
        lambda t: t.update({"image_proj.layers.0.0.to_q.weight": torch.ones(65, 32)}),
        ("image_proj.layers.0.0.to_q.weight", "65 rows", "64"),
    ),
    "missing layer": (
        lambda t: [t.pop(k) for k in list(t) if k.startswith("image_proj.layers.0.")],
        ("image_proj.layers.0.0.to_q.weight", "is missing"),
    ),
    "missing norm": (
        lambda t: t.pop("image_proj.layers.3.1.0.bias"),
        ("image_proj.layers.3.1.0.bias", "is missing"),
    ),
    "latents": (lambda t: t.update({"image_proj.latents": torch.ones(16, 32)}), ("image_proj.latents", "3 dimensions")),
    "two sets of latents": (
        lambda t: t.update({"image_proj.latents": torch.ones(2, 16, 32)}),
        ("image_proj.latents", "[2, 16, 32]", "[1, 16, 32]"),
    ),
}


@pytest.mark.parametrize(("change", "named"), BROKEN_PLUS.values(), ids=BROKEN_PLUS)
def test_broken_resamplers_are_named(
    base: Model, plus: Path, change: Callable[[dict[str, Tensor]], object], named: tuple[str, ...]
) -> None:
    load(plus, base)
    edit(plus / ADAPTER, change)
    refused(plus, base, ADAPTER, *named)


def test_an_adapter_of_another_model(folders: Mapping[tuple[str, str], Path], base: Model) -> None:
    refused(folders["tiny-xl", "base"] / "ip-adapter", base, ADAPTER, "width 64", "has 32")


def test_two_adapters_in_one_u_net(base: Model, adapter: Path) -> None:
    stored = {f"encoder_hid_proj.image_projection_layers.{k}.norm.weight": torch.ones(32) for k in (0, 1)}
    save_file(stored, adapter / ADAPTER)
    refused(adapter, base, ADAPTER, "2 adapters", "image_projection_layers.1")


def test_pickles_are_never_opened(base: Model, adapter: Path) -> None:
    (adapter / ADAPTER).write_bytes(pickle.dumps({"image_proj": [0.5] * 9}))
    refused(adapter, base, ADAPTER, "pickle")
    (adapter / ADAPTER).rename(adapter / "ip-adapter.bin")
    refused(adapter, base, "ip-adapter.bin", "convert")
    refused(adapter / "ip-adapter.bin", base, "ip-adapter.bin", "convert")
    refused(adapter, base, "ip-adapter.bin", "convert", weight_name="ip-adapter.bin")


def test_truncated_files(base: Model, adapter: Path) -> None:
    content = (adapter / ADAPTER).read_bytes()
    (adapter / ADAPTER).write_bytes(content[: len(content) // 2])
    refused(adapter, base, ADAPTER)


def test_names_that_lead_nowhere_or_outside(base: Model, adapter: Path) -> None:
    shutil.copy(adapter / ADAPTER, adapter.parent / ADAPTER)
    refused(adapter, base, "x.safetensors", "missing", weight_name="x.safetensors")
    refused(adapter, base, ".safetensors", weight_name=f"../{ADAPTER}")
    refused(adapter, base, "outside", subfolder="..")
    refused(adapter, base, "models", "no .safetensors file", subfolder="models")
    refused(adapter / ADAPTER, base, ADAPTER, "subfolder", subfolder="models")
    refused(adapter, base, "nobody/nothing", image_encoder="nobody/nothing")
    (adapter / ADAPTER).unlink()
    (adapter / ADAPTER).symlink_to(adapter.parent / ADAPTER)
    refused(adapter, base, "outside")


def test_image_encoders_that_do_not_fit(base: Model, adapter: Path, plus: Path) -> None:
    config = adapter / "image_encoder/config.json"
    original = json.loads(config.read_text())
    for field, value, named in (
        ("projection_dim", 25, ("width 25", "wants 24")),
        ("num_attention_heads", 5, ("num_attention_heads",)),
        ("num_channels", 4, ("num_channels",)),
        ("patch_size", 33, ("patch_size",)),
        ("num_hidden_layers", 4, ("encoder.layers.3",)),
        ("architectures", ["CLIPTextModel"], ("CLIPTextModel",)),
        ("architectures", ["CLIPModel"], ("CLIPModel",)),
    ):
        config.write_text(json.dumps({**original, field: value}))
        refused(adapter, base, *named)
        if field != "projection_dim":
            refused(adapter, base, *named, image_encoder="image_encoder")
    config.write_text(json.dumps(original))
    (plus / "image_encoder/config.json").write_text(json.dumps({**original, "hidden_size": 36}))
    refused(plus, base, "image_encoder/config.json", "width 36", "wants 32")
    edit(adapter / "image_encoder/model.safetensors", lambda t: t.pop("vision_model.pre_layrnorm.bias"))
    refused(adapter, base, "image_encoder", "vision_model.pre_layrnorm.bias", "is missing")
    shutil.rmtree(adapter / "image_encoder")
    refused(adapter, base, ADAPTER, "image_encoder")
